// Deno.serve: counts what it is asked, and the bytes of a body. At /bytes/N there are N.
let count = 0;
Deno.serve({ port: 8000 }, async (request) => {
  const { pathname } = new URL(request.url);
  if (pathname.startsWith("/bytes/")) {
    return new Response("x".repeat(Number(pathname.slice(7))));
  }
  const body = await request.arrayBuffer();
  return new Response(`count ${++count} bytes ${body.byteLength}\n`);
});
