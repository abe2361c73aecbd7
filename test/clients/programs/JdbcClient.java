import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ThreadLocalRandom;

/**
 * Sessions of the PostgreSQL JDBC driver that work until standard input ends, then print what they were
 * told. The connection is CLIENT_URL, everything else comes from CLIENT_* variables. Each line of the
 * output is "failed TEXT" or "acknowledged INSERTED ITEMS NOTES".
 */
public final class JdbcClient extends Thread {
    private static final long BASE = setting("BASE");
    private static final int SESSIONS = (int) setting("SESSIONS");
    private static final long ITEMS_OF_SESSION = setting("ITEMS_OF_SESSION");
    private static final long NOTES_OF_PROGRAM = setting("NOTES_OF_PROGRAM");
    private static final long FIRST_INSERTED = setting("FIRST_INSERTED");
    private static final long INSERTED_OF_SESSION = setting("INSERTED_OF_SESSION");
    private static final long MAX_THINK_MS = setting("MAX_THINK_MS");

    private static final int ROWS_OF_BATCH = 5;
    private static final int ROWS_OF_FETCH = 10;

    private static volatile boolean stopping = false;

    private final long number;
    private final List<String> failures = new ArrayList<>();
    private long nextId;
    private long inserted;
    private long items;
    private long notes;
    private Connection connection;

    private interface Work {
        void run() throws SQLException;
    }

    private JdbcClient(long number) {
        this.number = number;
        this.nextId = BASE + FIRST_INSERTED + number * INSERTED_OF_SESSION;
    }

    public static void main(String[] args) throws Exception {
        List<JdbcClient> sessions = new ArrayList<>();
        for (int number = 0; number < SESSIONS; number += 1) sessions.add(new JdbcClient(number));
        for (JdbcClient session : sessions) session.start();
        System.in.readAllBytes();
        stopping = true;
        for (JdbcClient session : sessions) session.join();
        for (JdbcClient session : sessions) {
            for (String failure : session.failures) System.out.println("failed " + failure);
            System.out.printf(
                    "acknowledged %d %d %d%n", session.inserted, session.items, session.notes);
        }
    }

    private static long setting(String name) {
        return Long.parseLong(System.getenv("CLIENT_" + name));
    }

    /** From 1 to last. */
    private static long random(long last) {
        return ThreadLocalRandom.current().nextLong(1, last + 1);
    }

    @Override
    public void run() {
        while (!stopping) {
            // The first session only reads: one that also writes would soon wait for its write.
            int choice = (int) random(number == 0 ? 2 : 5);
            try {
                if (connection == null) {
                    connection = DriverManager.getConnection(System.getenv("CLIENT_URL"));
                }
                switch (choice) {
                    case 1 -> read();
                    case 2 -> inTransaction(this::readSomeAtATime);
                    case 3 -> insert();
                    case 4 -> inTransaction(this::change);
                    default -> inTransaction(this::insertBatch);
                }
                Thread.sleep(random(MAX_THINK_MS));
            } catch (SQLException error) {
                fail(choice + ": " + error.getSQLState() + ": " + error.getMessage());
                close();
            } catch (InterruptedException error) {
                fail("interrupted");
                return;
            }
        }
        close();
    }

    private void fail(String text) {
        failures.add(text.replaceAll("\\s+", " "));
    }

    private void close() {
        try {
            if (connection != null) connection.close();
        } catch (SQLException error) {
            fail("close: " + error.getMessage());
        }
        connection = null;
    }

    private long takeId() {
        nextId += 1;
        return nextId;
    }

    private long ownItem() {
        return BASE + number * ITEMS_OF_SESSION + random(ITEMS_OF_SESSION);
    }

    private void insert() throws SQLException {
        change("INSERT INTO items VALUES (?, 0)", takeId());
        inserted += 1;
    }

    private void read() throws SQLException {
        String query = "SELECT v FROM items WHERE id = ?";
        try (PreparedStatement statement = connection.prepareStatement(query)) {
            statement.setLong(1, ownItem());
            try (ResultSet rows = statement.executeQuery()) {
                if (!rows.next()) fail("a row that was committed is not there");
            }
        }
    }

    private void inTransaction(Work work) throws SQLException {
        connection.setAutoCommit(false);
        work.run();
        connection.setAutoCommit(true);
    }

    private void change() throws SQLException {
        change("UPDATE items SET v = v + 1 WHERE id = ?", ownItem());
        change("UPDATE notes SET v = v + 1 WHERE id = ?", BASE + random(NOTES_OF_PROGRAM));
        String query = "SELECT v FROM lookup WHERE id = 1";
        try (PreparedStatement statement = connection.prepareStatement(query)) {
            statement.executeQuery().close();
        }
        change("UPDATE items SET v = v + 1 WHERE id = ?", ownItem());
        connection.commit();
        items += 2;
        notes += 1;
    }

    /** Several rows in one round trip. */
    private void insertBatch() throws SQLException {
        String insert = "INSERT INTO items VALUES (?, 0)";
        try (PreparedStatement statement = connection.prepareStatement(insert)) {
            for (int row = 0; row < ROWS_OF_BATCH; row += 1) {
                statement.setLong(1, takeId());
                statement.addBatch();
            }
            statement.executeBatch();
        }
        connection.commit();
        inserted += ROWS_OF_BATCH;
    }

    /** Rows of all shards, by a portal of the server. */
    private void readSomeAtATime() throws SQLException {
        String query = "SELECT id, v FROM items WHERE id > ? AND id <= ?";
        long count = 0;
        try (PreparedStatement statement = connection.prepareStatement(query)) {
            statement.setFetchSize(ROWS_OF_FETCH);
            statement.setLong(1, BASE);
            statement.setLong(2, BASE + SESSIONS * ITEMS_OF_SESSION);
            try (ResultSet rows = statement.executeQuery()) {
                while (rows.next()) count += 1;
            }
        }
        connection.commit();
        if (count != SESSIONS * ITEMS_OF_SESSION) fail("a read returned " + count + " rows");
    }

    private void change(String text, long id) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(text)) {
            statement.setLong(1, id);
            statement.executeUpdate();
        }
    }
}
