/**
 * Formats figures in the text format of Prometheus.
 *
 * @module
 */

/** One value of a metric, with its labels. */
export interface Sample {
  labels?: Record<string, string | undefined>;
  value: number;
}

/** A metric and its values. */
export interface Metric {
  name: string;
  help: string;
  type: "counter" | "gauge";
  samples: Sample[];
}

/** The media type of the format. */
export const METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8";

/** Formats metrics. A label without a value is left out, and so is a metric without samples. */
export function formatMetrics(metrics: readonly Metric[]): string {
  return metrics.filter(({ samples }) => samples.length > 0).map(formatMetric).join("");
}

function formatMetric({ name, help, type, samples }: Metric): string {
  const lines = samples.map(({ labels = {}, value }) => `${name}${formatLabels(labels)} ${value}\n`);
  return `# HELP ${name} ${help}\n# TYPE ${name} ${type}\n${lines.join("")}`;
}

function formatLabels(labels: Record<string, string | undefined>): string {
  const pairs = Object.entries(labels).filter(([, value]) => value !== undefined)
    .map(([name, value]) => `${name}="${escape(value!)}"`);
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
}

function escape(value: string): string {
  return value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
