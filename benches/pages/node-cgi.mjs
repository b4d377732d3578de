#!/usr/bin/env node
// The page of $PAGE as a CGI program: a process for the request.
const { render, type } = await import(`./${process.env.PAGE}.mjs`);
process.stdout.write(`Content-Type: ${type}\r\n\r\n${render()}`);
