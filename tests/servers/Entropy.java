// What is random in Java, a line each: its name and a value.
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.security.SecureRandom;
import java.util.Random;
import java.util.UUID;
import java.util.concurrent.ThreadLocalRandom;

public class Entropy {
    static final SecureRandom SECURE = new SecureRandom();
    static final Random SEEDED = new Random();

    public static void main(String[] args) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 8000), 0);
        server.createContext("/", exchange -> {
            String lines = "SecureRandom\t" + SECURE.nextLong()
                + "\nUUID.randomUUID\t" + UUID.randomUUID()
                + "\nnew Random()\t" + new Random().nextLong()
                + "\nMath.random\t" + Math.random()
                + "\nThreadLocalRandom\t" + ThreadLocalRandom.current().nextLong()
                + "\nan older Random\t" + SEEDED.nextLong() + "\n";
            byte[] answer = lines.getBytes();
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
    }
}
