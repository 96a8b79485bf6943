/**
 * Draws measurements as charts in SVG, the same text for the same numbers, readable on light and dark pages.
 *
 * @module
 */

import { BarChart, LineChart } from "npm:echarts@6.1.0/charts";
import { GridComponent, LegendComponent, MarkLineComponent, TitleComponent } from "npm:echarts@6.1.0/components";
import { type EChartsCoreOption, init, use } from "npm:echarts@6.1.0/core";
import { SVGRenderer } from "npm:echarts@6.1.0/renderers";

use([BarChart, LineChart, GridComponent, LegendComponent, MarkLineComponent, TitleComponent, SVGRenderer]);

/** A named series of values; `undefined` where one is missing. */
export interface Series {
  /** Name in the legend. */
  name: string;
  /** One for each category or position on the x axis. */
  values: (number | undefined)[];
}

/** The texts of a chart. */
interface Labels {
  title: string;
  /** The conditions of the measurement. */
  subtitle?: string;
  /** Name of the y axis. */
  y: string;
  /** A value of the y axis marked with a line: 1 for ratios. */
  line?: number;
}

const WIDTH = 960;
const HEIGHT = 440;
const TEXT = "#24292f";
const FAINT = "#57606a";
const GRID = "#d8dee4";
const FONT = "sans-serif";
// Ten colours that are distinguishable side by side.
const COLOURS = [
  "#0969da",
  "#54aeff",
  "#cf222e",
  "#ff9b94",
  "#1a7f37",
  "#8250df",
  "#bf8700",
  "#1b9e9e",
  "#d4509a",
  "#6e7781",
];
const SYMBOLS = ["circle", "rect", "triangle", "diamond"];

/** Draws groups of bars, one for each category. On a logarithmic axis they start at 1. */
export function bars(
  options: Labels & {
    /** The labels below the groups. */
    categories: string[];
    /** The bars of each group. */
    series: Series[];
    /** Whether the y axis is logarithmic. */
    log?: boolean;
  },
): string {
  const { categories, series, log = false } = options;
  const room = plotWidth(series) / categories.length;
  const bar = room * 0.8 / series.length;
  const values = series.flatMap(({ values }) => drawable(values, log)).filter((value) => value !== "-");
  const isUpright = bar < 28;
  return render(options, series, {
    xAxis: {
      type: "category",
      data: categories,
      axisTick: { show: false },
      axisLine: { lineStyle: { color: FAINT } },
      axisLabel: {
        color: TEXT,
        fontSize: 12,
        interval: 0,
        width: room - 20,
        overflow: "break",
      },
    },
    yAxis: yAxis(options.y, values, log),
    series: series.map(({ values }, n) => ({
      type: "bar",
      data: drawable(values, log).map((value) => {
        const hangs = log && value !== "-" && value < 1;
        const upright = { align: hangs ? "right" : "left", verticalAlign: "middle" };
        return { value, label: { position: hangs ? "bottom" : "top", ...isUpright ? upright : {} } };
      }),
      barGap: "0%",
      barCategoryGap: "20%",
      label: {
        show: bar >= 12,
        color: TEXT,
        fontSize: 10,
        distance: 4,
        rotate: isUpright ? 90 : 0,
        formatter: ({ value }: { value: unknown }) => typeof value === "number" ? short(value) : "",
      },
      ...n === 0 ? markLine(options.line ?? (log ? 1 : undefined)) : {},
    })),
  });
}

/** Draws lines over a numeric x axis, with a mark at every value. */
export function lines(
  options: Labels & {
    /** Name of the x axis. */
    x: string;
    /** The values' positions on the x axis. */
    xs: number[];
    /** The lines. */
    series: Series[];
    /** Which axes are logarithmic. */
    log?: "x" | "y" | "both";
  },
): string {
  const { xs, series, log } = options;
  const isLogX = log === "x" || log === "both";
  const isLogY = log === "y" || log === "both";
  const values = series.flatMap(({ values }) => drawable(values, isLogY)).filter((value) => value !== "-");
  return render(options, series, {
    xAxis: {
      type: isLogX ? "log" : "value",
      name: options.x,
      nameLocation: "middle",
      nameGap: 30,
      nameTextStyle: { color: TEXT, fontSize: 13 },
      min: Math.min(...xs),
      max: Math.max(...xs),
      axisLine: { show: true, onZero: false, lineStyle: { color: FAINT } },
      axisLabel: { color: TEXT, fontSize: 12, formatter: short },
      splitLine: { show: false },
    },
    yAxis: yAxis(options.y, values, isLogY),
    series: series.map(({ values }, n) => ({
      type: "line",
      data: drawable(values, isLogY).map((value, at) => [xs[at], value]),
      symbol: SYMBOLS[n % SYMBOLS.length],
      symbolSize: 9,
      lineStyle: { width: 2.5 },
      ...n === 0 ? markLine(options.line) : {},
    })),
  });
}

/** Combines charts into one image, one below the other. */
export function stack(...charts: string[]): string {
  const inner = charts.map((chart, n) =>
    chart.trimEnd().replace("<svg ", `<svg y="${n * HEIGHT}" `).replaceAll("zr-", `zr${n}-`)
  );
  const height = charts.length * HEIGHT;
  return `<svg width="${WIDTH}" height="${height}" viewBox="0 0 ${WIDTH} ${height}" xmlns="http://www.w3.org/2000/svg">\n${
    inner.join("\n")
  }\n</svg>\n`;
}

function render({ title, subtitle }: Labels, series: Series[], option: EChartsCoreOption): string {
  const chart = init(null, null, { renderer: "svg", ssr: true, width: WIDTH, height: HEIGHT });
  try {
    chart.setOption({
      animation: false,
      backgroundColor: "#ffffff",
      color: COLOURS,
      textStyle: { fontFamily: FONT },
      title: {
        text: title,
        subtext: subtitle ?? "",
        left: 20,
        top: 14,
        textStyle: { color: TEXT, fontSize: 18 },
        subtextStyle: { color: FAINT, fontSize: 12 },
      },
      legend: {
        show: series.length > 1,
        type: "plain",
        orient: "vertical",
        right: 16,
        top: 84,
        itemWidth: 16,
        textStyle: { color: TEXT, fontSize: 12 },
      },
      grid: { left: 76, right: WIDTH - 76 - plotWidth(series), top: 84, bottom: 56 },
      ...option,
      series: (option.series as Record<string, unknown>[]).map((one, n) => ({
        name: series[n]!.name,
        ...one,
      })),
    });
    // A static image needs no hover styles. ECharts numbers its names across charts: make them the same each time.
    return chart.renderToSVGString()
      .replace(/<style[^]*<\/style>\n?/, "")
      .replaceAll(/ (class|pointer-events|ecmeta_\w+)="[^"]*"/g, "")
      .replaceAll(/\bzr\d+-/g, "zr-") + "\n";
  } finally {
    chart.dispose();
  }
}

/** The width left by the legend. */
function plotWidth(series: Series[]): number {
  const longest = Math.max(...series.map(({ name }) => name.length));
  return WIDTH - 76 - (series.length > 1 ? 56 + longest * 7 : 28);
}

function yAxis(name: string, values: number[], log: boolean): Record<string, unknown> {
  return {
    type: log ? "log" : "value",
    name,
    nameLocation: "middle",
    nameGap: 52,
    nameTextStyle: { color: TEXT, fontSize: 13 },
    axisLabel: { color: TEXT, fontSize: 12, formatter: short },
    splitLine: { lineStyle: { color: GRID } },
    // The default, whole decades, leaves much of the image empty. The labels need a margin.
    ...log && values.length > 0
      ? { min: round(Math.min(...values) / 1.7, Math.floor), max: round(Math.max(...values) * 1.7, Math.ceil) }
      : {},
  };
}

/** Rounds to one significant digit. */
function round(value: number, how: (value: number) => number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  return Number((how(value / power) * power).toPrecision(1));
}

function markLine(at: number | undefined): Record<string, unknown> {
  if (at === undefined) return {};
  return {
    markLine: {
      silent: true,
      symbol: "none",
      data: [{ yAxis: at }],
      lineStyle: { color: TEXT, width: 1.5, type: "dashed" },
      label: { show: false },
    },
  };
}

/** Replaces values that cannot be drawn: missing ones, and on a logarithmic axis those up to 0. */
function drawable(values: (number | undefined)[], log: boolean): (number | "-")[] {
  return values.map((value) => value === undefined || !Number.isFinite(value) || log && value <= 0 ? "-" : value);
}

/** Formats with three significant digits, grouped by thousands. */
function short(value: number): string {
  return Number(value.toPrecision(3)).toLocaleString("en-GB", { maximumFractionDigits: 6 }).replaceAll(",", "\u2009");
}
