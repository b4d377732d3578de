// com.sun.net.httpserver: counts what it is asked, and the bytes of a body.
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;

public class Server {
    static int count;

    public static void main(String[] args) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 8000), 0);
        server.createContext("/", exchange -> {
            int bytes = exchange.getRequestBody().readAllBytes().length;
            byte[] answer = ("count " + ++count + " bytes " + bytes + "\n").getBytes();
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
    }
}
