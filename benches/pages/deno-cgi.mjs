#!/usr/bin/env -S deno run -A
// The page of $PAGE as a CGI program: a process for the request.
const { render, type } = await import(`./${Deno.env.get("PAGE")}.mjs`);
await new Response(`Content-Type: ${type}\r\n\r\n${render()}`).body.pipeTo(Deno.stdout.writable);
