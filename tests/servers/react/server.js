// Deno and react-dom: renders the page at each request. It counts how often it has.
import { createElement as h } from "react";
import { renderToString } from "react-dom/server";
import { App } from "./app.js";

const script = await Deno.readFile(new URL("client.bundle.js", import.meta.url));
const style = "body{font-family:sans-serif;margin:2em}ul{display:grid;grid-template-columns:repeat(5,1fr);padding:0}li{list-style:none}";
let rendered = 0;

Deno.serve({ port: 8000 }, (request) => {
  if (new URL(request.url).pathname === "/client.js") {
    return new Response(script, { headers: { "content-type": "text/javascript", "cache-control": "max-age=60" } });
  }
  rendered += 1;
  const page = renderToString(h(App, { rendered }));
  const html = `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A shop</title><style>${style}</style></head>` +
    `<body><div id="root">${page}</div><script src="/client.js" data-rendered="${rendered}"></script></body></html>`;
  return new Response(html, { headers: { "content-type": "text/html; charset=utf-8" } });
});
