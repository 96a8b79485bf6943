/**
 * Advises what to do about a step of a check that failed.
 *
 * @module
 */

/** The kinds of steps of a check. */
export type StepKind =
  | "name"
  | "connection"
  | "proxy"
  | "TLS"
  | "WebSocket"
  | "protocol"
  | "smux"
  | "secret"
  | "forward"
  | "reverse"
  | "target"
  | "fixed"
  | "measure"
  | "idle";

// A certificate whose issuer is not trusted, in the words of Deno and of Node.
const UNTRUSTED = /UnknownIssuer|self-signed certificate|unable to (verify the first|get (local )?issuer) certificate/;

// What the message of an error contains, and what to do. The first that matches; without a pattern, any error.
const ADVICE: Record<StepKind, readonly [pattern: RegExp | undefined, advice: string][]> = {
  name: [
    [/timed out/, "The name server does not answer: check the network of this machine."],
    [undefined, "Check the spelling of the host in --connect, and the name server of this machine."],
  ],
  connection: [
    [/refused|no such file/, "No process listens there. Start sluice server, or connect to its --listen address."],
    [/timed out/, "Nothing answers: a firewall drops the packets, or the address is not that of the server."],
    [/permission|access/i, "This process may not connect to the address."],
    [undefined, "Check the address in --connect, and the network of this machine."],
  ],
  proxy: [
    [
      /cannot resolve|cannot connect to the proxy/i,
      "Check the host and the port in --proxy, and the network of this machine.",
    ],
    [/socks5:\/\/.*wants a user/, "Write --proxy socks5://USER:PASSWORD@HOST:PORT."],
    [/wants a user/, "Write --proxy http://USER:PASSWORD@HOST:PORT, or set $HTTPS_PROXY like this."],
    [/does not accept/, "Compare the user and the password with those of the proxy; write special characters as %XX."],
    [/only basic/, "Use a proxy in between that can do this, such as cntlm on this machine, or --proxy none."],
    [/does not allow/, "The rules of the proxy decide: many allow port 443 only. Let the server listen there."],
    [/expects TLS/, "Use the port of the proxy for plain connections: TLS to a proxy is not supported."],
    [/does not speak SOCKS/, "For an HTTP proxy write --proxy http://HOST:PORT."],
    [/does not speak HTTP/, "For a SOCKS 5 proxy write --proxy socks5://HOST:PORT."],
    [/another kind of server/, "Check that the address in --proxy is that of a proxy."],
    [/timed out/, "The proxy is stopped, or cannot reach the server: check the address in --connect."],
    [undefined, "The proxy cannot reach the server: check the address in --connect, and whether the server runs."],
  ],
  TLS: [
    [/has the pin/, "Compare --pin with the pin that the server prints when it starts."],
    [UNTRUSTED, "If this is the certificate of your server, trust it: --ca FILE."],
    [/CaUsedAsEndEntity/, "It is the certificate of a CA. Make one for the server: sluice cert."],
    [/Expired/, "The certificate has expired: make a new one, and restart the server with it."],
    [/NotValidYet/, "The certificate is not valid yet: check the clock of this machine."],
    [
      /NotValidForName|only valid for|not valid for/,
      "Connect to a name of the certificate, or make one for this host.",
    ],
    [
      /end of file|InvalidContentType|corrupt|before secure TLS|during the TLS handshake/,
      "The server does not use TLS: start it with --cert and --key.",
    ],
    [/timed out/, "The server does not answer the TLS handshake: it may not use TLS, or is stopped."],
    [undefined, "Compare --ca with the --cert of the server."],
  ],
  WebSocket: [
    [
      /status (2|40[134])/,
      "Compare the path in --connect with that in --listen of the server, and the configuration of a proxy.",
    ],
    [/status 3/, "Connect to the address that it points to; http:// is ws://, https:// is wss://."],
    [/status 50[234]/, "The proxy cannot reach the server: start it, and compare its --listen with that of the proxy."],
    [/status 426|invalid answer/, "A proxy in between does not pass on the headers upgrade and connection."],
    [/timed out/, "The server does not answer: it may expect TLS (wss://), or is stopped."],
    [undefined, "The server does not use WebSockets, or a proxy in between cuts them: see its log."],
  ],
  protocol: [
    [
      /client certificate|refuses the client|client's certificate/,
      "Connect with --cert FILE and --key FILE: a certificate of a CA in the server's --client-ca.",
    ],
    [/begins with "HTTP/, "A web server answers: connect with ws:// or wss://."],
    [/expects TLS/, "Connect with --tls, or with --ca FILE for a certificate that is not trusted."],
    [/does not speak smux/, "Another program listens there: connect to the --listen address of sluice server."],
    [/too many are waiting/, "The server is overloaded: try again later."],
    [
      undefined,
      "The server is stopped or overloaded, or a proxy in between cannot reach it. With TLS it waits: use --tls.",
    ],
  ],
  smux: [
    [/but smux 1 is/, "Use --smux 1."],
    [/but smux 2 is/, "Use --smux 2, the default."],
    [/not as a server of tunnels/, "For a server with a fixed --target use --forward LISTEN, without a target."],
    [undefined, "The server speaks another protocol, or is out of descriptors: see its log."],
  ],
  secret: [
    [/certificate/, "Add this user to the --users of the server, or show another certificate."],
    [/is required/, "Use --secret FILE, and --user NAME if the server has --users."],
    [/wrong/, "Compare the file of --secret, and --user, with those of the server."],
    [undefined, "See the log of the server."],
  ],
  forward: [
    [/not allowed/, "Start the server with this target in --allow, or in the rules of the user."],
    [/at the same time/, "The user has reached its limit: close other connections."],
    [/does not support UDP/, "The server is older than UDP in Sluice: update it."],
    [/cannot resolve/, "The server does not know this name: check its spelling, and the name server there."],
    [
      undefined,
      "It is allowed, but the server cannot connect: start the service, or correct the target as seen there.",
    ],
  ],
  reverse: [
    [/not allowed/, "Start the server with this address in --allow-listen, or in the rules of the user."],
    [/does not support UDP/, "The server is older than UDP in Sluice: update it."],
    [/address in use/, "Another process or client has this address, or your own tunnel that is running."],
    [/at the same time/, "The user has reached its limit of ports."],
    [undefined, "The server may not listen there: choose another address or port."],
  ],
  target: [
    [/timed out/, "Nothing answers at this target: check its address."],
    [undefined, "Start the service that this client forwards to, or correct the target."],
  ],
  fixed: [[undefined, "Start the target of the server, or correct its --target: see the log of the server."]],
  measure: [[undefined, "The connection was lost meanwhile: see the log of the server."]],
  idle: [
    [/silently/, "A device in between forgets idle connections: use a --keepalive that is shorter."],
    [undefined, "A device in between cuts idle connections: use a --keepalive that is shorter."],
  ],
};

/** Returns what to do about a failed step with this message. */
export function adviceFor(kind: StepKind, message: string): string {
  const advice = ADVICE[kind].find(([pattern]) => pattern === undefined || pattern.test(message))![1];
  const [pin] = /\bsha256:\S+=/.exec(message) ?? [];
  // A pin can be copied from here; whether it is right, only the server's log shows.
  if (pin === undefined || kind !== "TLS" || !UNTRUSTED.test(message)) return advice;
  return `${advice.slice(0, -1)}, or, if the server prints the same pin: --pin ${pin}`;
}
