// Deno.serve: counts what it is asked, and the bytes of a body.
let count = 0;
Deno.serve({ port: 8000 }, async (request) => {
  const body = await request.arrayBuffer();
  return new Response(`count ${++count} bytes ${body.byteLength}\n`);
});
