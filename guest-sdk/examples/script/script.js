// What the example "script" runs if it is given no other: a page that counts, a calculator, and the request as JSON.

let requests = 0;

function handle(request) {
    const [path, query = ""] = request.url.split("?");
    const parameters = Object.fromEntries(query.split("&").map(pair => {
        const [name, ...value] = pair.split("=").map(text => decodeURIComponent(text.replaceAll("+", " ")));
        return [name, value.join("=")];
    }));
    requests++;
    switch (path) {
    case "/count": // the same for everybody: what a request changes is forgotten with it
        return `${requests}\n`;
    case "/run": // a script of the visitor's, with nothing in reach but this request's fork
        return {type: "text/plain", body: `${(0, eval)(request.body || parameters.script || "")}\n`};
    case "/json":
        return {type: "application/json", headers: {"X-Made-By": "QuickJS"}, body: JSON.stringify(request)};
    case "/log":
        print(`logged: ${query}`);
        return "logged\n";
    case "/":
        return {type: "text/html; charset=utf-8", body: "<!doctype html><title>JavaScript</title>" +
            "<h1>JavaScript at the edge</h1><form action=run><textarea name=script rows=8 cols=60>" +
            "Array.from({length: 20}, (_, n) => n * n).filter(n => n % 3 == 1).join(', ')" +
            "</textarea><p><button>Run</button></form>"};
    }
    return {status: 404, body: "There is nothing here.\n"};
}
