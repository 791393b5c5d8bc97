import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;

/** A map in the memory of a Java machine: PUT /key stores the body, GET /key returns it. */
class Server {
    public static void main(String[] arguments) throws Exception {
        var values = new ConcurrentHashMap<String, byte[]>();
        var server = HttpServer.create(new InetSocketAddress("0.0.0.0", 8080), 0);
        server.setExecutor(Executors.newFixedThreadPool(4));
        server.createContext("/", exchange -> {
            var key = exchange.getRequestURI().getPath();
            try (exchange) {
                if (exchange.getRequestMethod().equals("PUT")) {
                    values.put(key, exchange.getRequestBody().readAllBytes());
                    exchange.sendResponseHeaders(204, -1);
                    return;
                }
                var value = values.get(key);
                if (value != null) {
                    exchange.sendResponseHeaders(200, value.length);
                    exchange.getResponseBody().write(value);
                } else {
                    exchange.sendResponseHeaders(404, -1);
                }
            }
        });
        server.start();
    }
}
