// A map in the memory of Node.js: PUT /key stores the body, GET /key returns it.
const values = new Map();
require("http").createServer((request, response) => {
    if (request.method === "GET") {
        const value = values.get(request.url);
        response.writeHead(value === undefined ? 404 : 200).end(value);
        return;
    }
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", () => {
        values.set(request.url, Buffer.concat(parts));
        response.writeHead(204).end();
    });
}).listen(8080, "0.0.0.0");
