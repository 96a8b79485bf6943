/**
 * Suggests what was meant by a mistake on the command line, and explains errors of the system.
 *
 * Each function returns the end of a message, such as "write --forward 8080=host:80", or `undefined`.
 *
 * @module
 */

import { parseEndpoint, withoutUrlPath } from "./address.ts";
import { parseRule } from "./rules.ts";
import { type Option, OPTIONS } from "./usage.ts";
import { isWebSocketUrl } from "./web_socket_address.ts";

/** A corrected value, and what was wrong. */
interface Fix {
  text: string;
  why?: string;
}

/** What an address is for: to listen at, to connect to, or a rule. */
type Use = "LISTEN" | "TARGET" | "RULE";

// The ports of schemes and services that are written instead of a port.
const PORTS: Record<string, string> = {
  http: "80",
  https: "443",
  socks: "1080",
  socks4: "1080",
  socks4a: "1080",
  socks5: "1080",
  socks5h: "1080",
  ssh: "22",
  ws: "80",
  wss: "443",
};

// At the end of LISTEN=TARGET: the connection begins with a header of the PROXY protocol.
const PROXIED = ",proxy";

const isIpv6 = (text: string) => text.includes(":") && URL.canParse(`http://[${text}]/`);

/** Whether an address is valid for its use. */
function isValid(text: string, use: Use): boolean {
  try {
    if (use === "RULE") parseRule("", text);
    else parseEndpoint("", text, use === "LISTEN" ? 0 : 1);
    return true;
  } catch {
    return false;
  }
}

/** Quotes a word for a shell if it contains a wildcard or `!`. */
function quote(word: string): string {
  return /[*!]/.test(word) ? `'${word}'` : word;
}

function write(option: string, { text, why }: Fix): string {
  return `${why === undefined ? "" : `${why}: `}write ${option} ${quote(text)}`;
}

/** Corrects HOST:PORT whose host stands for all hosts. */
function fixAnyHost(port: string, use: Use): Fix {
  if (use === "RULE") return { text: `*:${port}` };
  const number = port === "*" ? "PORT" : port;
  return { text: `${use === "LISTEN" ? "0.0.0.0" : "localhost"}:${number}` };
}

/** Corrects a host without a port. */
function fixBareHost(host: string): Fix {
  return { text: `${host}:PORT`, why: "it has no port" };
}

/** Corrects `scheme://user@host:port/path`. */
function fixUrl(text: string): Fix | undefined {
  const [, scheme, authority] = /^([a-z][a-z\d+.-]*):\/\/(?:[^@/]*@)?([^/?#]+)/i.exec(text) ?? [];
  if (authority === undefined) return undefined;
  const hasPort = /:\d+$/.test(authority);
  return {
    text: hasPort ? authority : `${authority}:${PORTS[scheme!.toLowerCase()] ?? "PORT"}`,
    why: "it must not be a URL",
  };
}

/** Corrects an IPv6 address without brackets. */
function fixIpv6(text: string): Fix | undefined {
  const [, host, port] = /^(.+):(\d+)$/.exec(text) ?? [];
  const why = "IPv6 needs brackets";
  if (host !== undefined && isIpv6(host)) return { text: `[${host}]:${port}`, why };
  return isIpv6(text) ? { ...fixBareHost(`[${text}]`), why } : undefined;
}

/** Corrects HOST:PORT with something before, between or after; `undefined` also for a port out of range. */
function fixPort(text: string, use: Use): Fix | undefined {
  const [, host, digits] = /^(?:[^@/:]+@)?([\w.-]+)(?::| +)(\d+)\/?$/.exec(text) ?? [];
  if (host !== undefined) return isValid(`${host}:${digits}`, use) ? { text: `${host}:${digits}` } : undefined;
  const [, name, service] = /^([\w.-]+|\[[\da-f:.]+\]):([a-z]+)$/i.exec(text) ?? [];
  if (service === undefined) return undefined;
  return { text: `${name}:${PORTS[service.toLowerCase()] ?? "PORT"}`, why: "the port must be a number" };
}

/** Corrects a rule with `!` or `udp:` in front. */
function fixPrefixed(prefix: string, text: string): Fix | undefined {
  const fix = fixAddress(text.slice(prefix.length), "RULE");
  return fix && { ...fix, text: prefix + fix.text };
}

/** Corrects one address; `undefined` if it is valid, or what was meant is unknown. */
function fixAddress(text: string, use: Use): Fix | undefined {
  if (isValid(text, use) || /^\d*:?$/.test(text)) return undefined;
  const [prefix] = use === "RULE" ? /^!?(?:udp:)?/i.exec(text)! : [""];
  if (prefix !== "") return fixPrefixed(prefix, text);
  if (/^\.{0,2}\//.test(text)) return { text: `unix:${text}`, why: "it is a path" };
  const [isAnyHost, anyHostPort = "*"] = /^\*?:(\d+|\*)$|^\*$/.exec(text) ?? [];
  if (isAnyHost !== undefined) return fixAnyHost(anyHostPort, use);
  if (/(^|:)\d+-\d+$/.test(text)) {
    return use === "RULE" ? undefined : { text: text.replace(/-\d+$/, ""), why: "it must be one port" };
  }
  if (/^(?:[\w][\w.-]*|\[[\da-f:.]+\]):?$/i.test(text)) return fixBareHost(text.replace(/:$/, ""));
  return fixPort(text, use) ?? fixUrl(text) ?? fixIpv6(text);
}

/** Returns the address corrected as far as possible. */
function fixed(text: string, use: Use): string {
  return fixAddress(text, use)?.text ?? text;
}

/** Splits at colons, except those inside of brackets. */
function splitAtColons(text: string): string[] {
  return text.match(/(?:\[[^\]]*\]|[^:[])+|(?<=^|:)(?=:|$)/g) ?? [];
}

/** Corrects `[bind:]port:host:hostport` of ssh, `port:port` of containers, and their forms with paths. */
function fixColons(text: string): string | undefined {
  const parts = splitAtColons(text);
  const isAlone = (part: string | undefined) => part !== undefined && /^(\d+$|\/)/.test(part);
  // LISTEN and TARGET are one part each, a port or a path, or two: host and port.
  const begin = isAlone(parts[0]) ? 1 : 2;
  const [listen, [host = "", port, ...more]] = [parts.slice(0, begin), parts.slice(begin)];
  if (host === "" || more.length > 0 || (begin === 2 && !isAlone(parts[1]))) return undefined;
  const from = fixed(listen.join(":"), "LISTEN");
  const to = fixed(port === undefined ? host : `${host}:${port}`, "TARGET");
  return isValid(from, "LISTEN") && isValid(to.replace(/:PORT$/, ":1"), "TARGET") ? `${from}=${to}` : undefined;
}

/** Corrects LISTEN=TARGET, and drops `,proxy` behind datagrams. */
function fixForward(text: string, needsTarget: boolean): Fix | undefined {
  if (!text.endsWith(PROXIED)) return fixPlain(text, needsTarget);
  const rest = text.slice(0, -PROXIED.length);
  const fix = fixPlain(rest, needsTarget);
  if (/^udp:/i.test(rest)) return fix ?? { text: rest, why: "datagrams have no header of a proxy" };
  return fix && { ...fix, text: `${fix.text}${PROXIED}` };
}

function fixPlain(text: string, needsTarget: boolean): Fix | undefined {
  const [listen, target] = text.split(/=(.*)/s) as [string, string?];
  if (target !== undefined) {
    const [from, to] = [listen === "-" ? undefined : fixAddress(listen, "LISTEN"), fixAddress(target, "TARGET")];
    const why = from?.why ?? to?.why;
    const both = { text: `${from?.text ?? listen}=${to?.text ?? target}` };
    return from === undefined && to === undefined ? undefined : why === undefined ? both : { ...both, why };
  }
  const colons = fixColons(text);
  if (colons !== undefined) return { text: colons };
  const from = fixAddress(text, "LISTEN");
  if (!needsTarget) return from;
  return from === undefined && !isValid(text, "LISTEN") ? undefined : { text: `${from?.text ?? text}=PORT` };
}

function fixValue({ value, isRule }: Option, text: string, isReverse: boolean): Fix | undefined {
  if (value === "LISTEN=TARGET") return fixForward(text, isReverse);
  if (value === "LISTEN" || value === "TARGET") return fixAddress(text, isRule ? "RULE" : value);
  if (value === "HOST") return /:\d+$/.test(text) ? { text: text.replace(/:\d+$/, "") } : undefined;
  const [, digits, unit] = /^(\d+)([smh])$/.exec(text) ?? [];
  if (value !== "SECONDS" || digits === undefined) return undefined;
  return { text: `${Number(digits) * { s: 1, m: 60, h: 3600 }[unit as "s" | "m" | "h"]}` };
}

/** Splits a list, except before `proxy`; a port alone gets the host of the address before it. */
function splitList(text: string): string[] {
  let host = "";
  return text.split(/[,;](?!proxy(?:[,;]|$))\s*/).filter((item) => item !== "").map((item) => {
    const whole = host !== "" && /^\d+$/.test(item) ? host + item : item;
    host = /^[^=]+:(?=\d+$)/.exec(whole)?.[0] ?? "";
    return whole;
  });
}

/** Suggests the URL of a WebSocket for another address with a path, and `--tls` for the URL of a server with TLS. */
function urlHint(name: string, text: string): string | undefined {
  const [, scheme = "", authority, port, path] =
    /^(https?:\/\/)?(?:[^@/]*@)?([\w.-]+|\[[\da-f:.]+\])(:\d+)?(\/.*)?$/i.exec(text) ?? [];
  if (authority === undefined || (scheme === "" && (port === undefined || !path))) return undefined;
  const isSecure = /^https/i.test(scheme);
  // The path may be a secret.
  if (path !== undefined && path !== "/") {
    const urls = scheme === "" ? "ws://... or wss://..." : isSecure ? "wss://..." : "ws://...";
    return `only the URL of a WebSocket has a path: write ${name} ${urls}`;
  }
  if (!isSecure || name !== "--connect") return undefined;
  return `it must not be a URL: write ${name} ${authority}${port ?? ":443"} --tls`;
}

/** Suggests a valid value for an option, such as `--forward`. */
export function valueHint(name: string, option: Option, text: string): string | undefined {
  // The path and the value of a header may be secrets.
  if (option.value === "HEADER" || (option.isUrl && isWebSocketUrl(text))) return undefined;
  const ofUrl = option.isUrl && urlHint(name, text);
  if (ofUrl) return ofUrl;
  const fix = (item: string) => fixValue(option, item, name === "--reverse");
  const items = splitList(text);
  if (items.length > 1) {
    if (!option.isList) return `${name} accepts only one ${option.value}`;
    return `write ${items.map((item) => `${name} ${quote(fix(item)?.text ?? item)}`).join(" ")}`;
  }
  const found = fix(text);
  const hasPassword = (name === "--socks" || name === "--http" || name === "--reverse-socks") && /:\/\/.*@/.test(text);
  return found && write(name, found) + (hasPassword ? ", and the user and password into --proxy-auth FILE" : "");
}

/** Suggests what to do when the file of an option cannot be read. */
export function fileHint(name: string): string | undefined {
  if (name === "--secret") return "the secret must be in a file, or in $SLUICE_SECRET";
  if (name === "--proxy-auth") return "USER:PASSWORD must be in a file";
  return name === "--cert" || name === "--key" ? "sluice cert makes a certificate and its key" : undefined;
}

/** Short options of ssh and netcat, and what they are here. */
const SHORT: Record<string, (value: string, command: string) => string> = {
  L: (value) => `sluice client --forward ${quote(fixForward(value, false)?.text ?? (value || "LISTEN=TARGET"))}`,
  R: (value) =>
    // Without a target, as with -D.
    /^(?:[\w.-]+:|\[[\da-f:.]+\]:)?\d+$/i.test(value)
      ? `sluice client --reverse-socks ${value} --allow '*:443'`
      : `sluice client --reverse ${quote(fixForward(value, true)?.text ?? (value || "LISTEN=TARGET"))}`,
  D: (value) => `sluice client --socks ${fixed(value, "LISTEN") || "LISTEN"}`,
  W: (value) => `sluice client --forward -=${fixed(value, "TARGET") || "TARGET"}`,
  l: (value) => `sluice server --listen ${fixed(value, "LISTEN") || "LISTEN"}`,
  p: (value, command) =>
    command === "client" ? `--connect HOST:${value || "PORT"}` : `sluice server --listen ${value || "LISTEN"}`,
  v: (_, command) => `sluice ${command} --trace`,
};

/** What other programs call an option: the first name that the command has is meant. */
const SYNONYMS = new Map([
  ["address", ["listen", "connect"]],
  ["auth", ["secret"]],
  ["bind", ["listen"]],
  ["cacert", ["ca"]],
  ["cafile", ["ca"]],
  ["certificate", ["cert"]],
  ["debug", ["trace"]],
  ["dynamic", ["socks"]],
  ["host", ["listen", "connect"]],
  ["httpproxy", ["http"]],
  ["local", ["forward"]],
  ["noproxy", ["proxy"]],
  ["password", ["secret"]],
  ["port", ["listen", "connect"]],
  ["remote", ["reverse"]],
  ["server", ["connect"]],
  ["tlscert", ["cert"]],
  ["tlskey", ["key"]],
  ["token", ["secret"]],
  ["verbose", ["trace"]],
]);

/** Counts the insertions, deletions, replacements and exchanges of neighbours that turn one word into the other. */
export function editDistance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, n) => n)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = rows[i - 1]![j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      const isExchange = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      const exchanged = isExchange ? rows[i - 2]![j - 2]! + 1 : Infinity;
      row.push(Math.min(replaced, exchanged, rows[i - 1]![j]! + 1, row[j - 1]! + 1));
    }
    rows.push(row);
  }
  return rows[a.length]![b.length]!;
}

/** Returns the word that was probably meant: the only one that it begins, or the nearest. */
function nearest(word: string, candidates: string[]): string | undefined {
  const plain = (text: string) => text.toLowerCase().replaceAll(/[_-]/g, "");
  const exact = candidates.find((candidate) => plain(candidate) === plain(word));
  if (exact !== undefined) return exact;
  const begun = candidates.filter((candidate) => word.length > 1 && candidate.startsWith(word));
  if (begun.length === 1) return begun[0];
  const distances = candidates.map((candidate) => editDistance(word, candidate));
  const least = Math.min(...distances);
  // Larger: suggestions that have little to do with the word; smaller: typing errors without a suggestion.
  return least <= Math.min(2, word.length / 3) ? candidates[distances.indexOf(least)] : undefined;
}

/** Suggests the line for a short option of another program. */
function shortHint(command: string, word: string, next: string | undefined): string | undefined {
  const [, letter = "", attached] = /^-([a-zA-Z])=?(.*)$/s.exec(word) ?? [];
  if (!Object.hasOwn(SHORT, letter)) return undefined;
  const value = attached || (next?.startsWith("-") ? "" : next ?? "");
  return `write ${SHORT[letter]!(value, command).replace(`sluice ${command} `, "")}`;
}

/** Suggests an option instead of an unknown one: `word` as it was written, `next` the word after it. */
export function optionHint(command: string, word: string, next?: string): string | undefined {
  const options = OPTIONS[command]!;
  const name = word.replace(/^--?/, "").replace(/=.*/s, "");
  if (Object.hasOwn(options, `no-${name}`)) return "it is the default";
  const own = name.length === 1 ? undefined : nearest(name, Object.keys(options));
  const synonyms = SYNONYMS.get(name.toLowerCase().replaceAll(/[_-]/g, ""));
  const meant = own ?? synonyms?.find((synonym) => Object.hasOwn(options, synonym));
  if (meant !== undefined) return `did you mean --${meant}?`;
  const other = Object.keys(OPTIONS).find((role) => Object.hasOwn(OPTIONS[role]!, name));
  return shortHint(command, word, next) ?? (other && `--${name} is an option of sluice ${other}`);
}

/** Suggests a command instead of an unknown one: `next` is the word after it. */
export function commandHint(word: string, next?: string): string | undefined {
  const command = nearest(word, Object.keys(OPTIONS));
  if (command !== undefined) return `did you mean sluice ${command}?`;
  const name = word.replace(/=.*/s, "").replace(/^--/, "");
  const owners = word.startsWith("--")
    ? Object.keys(OPTIONS).filter((role) => Object.hasOwn(OPTIONS[role]!, name) && role !== "check")
    : [];
  return owners.length === 1 ? `write sluice ${owners[0]} --${name}` : shortHint("", word, next);
}

/** Suggests an option for a word without one; `last` is the name of the option before it, without dashes. */
export function wordHint(command: string, word: string, last: string | undefined): string | undefined {
  if (word.startsWith("-")) return undefined;
  const [name, use] = command === "server" ? ["listen", "LISTEN"] as const : ["connect", "TARGET"] as const;
  // The path may be a secret.
  if (isWebSocketUrl(word)) return command === "cert" ? undefined : `write --${name} ${/^\w+/.exec(word)![0]}://...`;
  if (last !== undefined) {
    const option = OPTIONS[command]![last]!;
    const ofUrl = option.isUrl && option.isList && urlHint(`--${last}`, word);
    if (ofUrl) return ofUrl;
    if (option.isList) {
      const text = fixValue(option, word, last === "reverse")?.text ?? word;
      const isMistake = option.isUrl && !isValid(text.replace(/:PORT$/, ":1"), "TARGET");
      // The path of a URL may be a secret.
      return isMistake || withoutUrlPath(text) !== text ? undefined : write(`--${last}`, { text });
    }
    return option.value === undefined ? `--${last} takes no value` : undefined;
  }
  if (command === "cert") return /^[^/@]+$/.test(word) ? `write --host ${word}` : undefined;
  const ofUrl = urlHint(`--${name}`, word);
  if (ofUrl) return ofUrl;
  const text = fixed(word, use);
  return isValid(text.replace(/:PORT$/, ":1"), use) ? `write --${name} ${text}` : undefined;
}

// Parts of messages of the system and of Deno, and what helps.
const CAUSES: [part: RegExp, hint: string][] = [
  [/CaUsedAsEndEntity/, "the certificate of the server is one of a CA; sluice cert makes one for a server"],
  // Of TLS of Deno, and of TLS of Node, which a client with a certificate or a pin uses.
  [
    /UnknownIssuer|self-signed certificate|unable to (verify the first|get (local )?issuer) certificate/,
    "trust the certificate of the server with --ca FILE",
  ],
  // The names are those of a certificate in --ca, as when the server has a new one for the same hosts.
  [/BadSignature/, "the server has another certificate than that in --ca FILE; if it is a new one, copy it"],
  [/InvalidContentType/, "the other end does not use TLS; clients need --tls, servers --cert and --key"],
  [
    /cannot connect to .*(unexpected end of file|before secure TLS|during the TLS handshake)/i,
    "the server may not use TLS, which needs its options --cert and --key",
  ],
  // 22 begins a handshake of TLS.
  [/expected version 1 or 2, received 22\b/, "the client uses TLS; start the server with --cert and --key"],
  [/socks5:\/\/.*the proxy wants a user/, "write --proxy socks5://USER:PASSWORD@HOST:PORT"],
  [/the proxy wants a user/, "write --proxy http://USER:PASSWORD@HOST:PORT"],
  [/too many open files/i, "raise the limit with ulimit -n"],
];

/** Explains an error by the text of its message. */
export function errorHint(message: string): string | undefined {
  return CAUSES.find(([part]) => part.test(message))?.[1];
}
