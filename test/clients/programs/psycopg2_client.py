"""Sessions of psycopg2 that work until standard input ends, then print what they were told.

The connection comes from libpq's variables, everything else from CLIENT_* variables. WORKS is a list of
methods of Session. Each line of the output is "failed TEXT" or "acknowledged INSERTED ITEMS NOTES".
"""

import io
import os
import random
import sys
import threading

import psycopg2


def setting(name):
    return int(os.environ["CLIENT_" + name])


BASE = setting("BASE")
SESSIONS = setting("SESSIONS")
ITEMS_OF_SESSION = setting("ITEMS_OF_SESSION")
NOTES_OF_PROGRAM = setting("NOTES_OF_PROGRAM")
FIRST_INSERTED = setting("FIRST_INSERTED")
INSERTED_OF_SESSION = setting("INSERTED_OF_SESSION")
MAX_THINK_MS = setting("MAX_THINK_MS")
WORKS = os.environ["CLIENT_WORKS"].split(",")

READS = {"read", "cursor", "copy_out"}
ROWS_OF_COPY = 20

stopping = threading.Event()


class Session(threading.Thread):
    def __init__(self, number):
        super().__init__(daemon=True)
        self.number = number
        # The first session only reads: one that also writes would soon wait for its write.
        self.works = [name for name in WORKS if number > 0 or name in READS]
        self.next_id = BASE + FIRST_INSERTED + number * INSERTED_OF_SESSION
        self.inserted = self.items = self.notes = 0
        self.failures = []
        self.connection = None

    def run(self):
        while not stopping.is_set():
            name = random.choice(self.works)
            try:
                if self.connection is None:
                    self.connection = psycopg2.connect("")
                getattr(self, name)()
            except psycopg2.Error as error:
                self.failures.append(f"{name}: {error.pgcode}: {error}")
                self.close()
            stopping.wait(random.uniform(0, MAX_THINK_MS) / 1000)
        self.close()

    def close(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def statement(self, text, values):
        """One statement that is a transaction of its own."""
        self.connection.autocommit = True
        with self.connection.cursor() as cursor:
            cursor.execute(text, values)

    def take_id(self):
        self.next_id += 1
        return self.next_id

    def own_item(self):
        return BASE + self.number * ITEMS_OF_SESSION + random.randint(1, ITEMS_OF_SESSION)

    def insert(self):
        self.statement("INSERT INTO items VALUES (%s, 0)", (self.take_id(),))
        self.inserted += 1

    def read(self):
        self.statement("SELECT v FROM items WHERE id = %s", (self.own_item(),))

    def transaction(self):
        self.connection.autocommit = False
        with self.connection, self.connection.cursor() as cursor:
            cursor.execute("UPDATE items SET v = v + 1 WHERE id = %s", (self.own_item(),))
            note = BASE + random.randint(1, NOTES_OF_PROGRAM)
            cursor.execute("UPDATE notes SET v = v + 1 WHERE id = %s", (note,))
            cursor.execute("SELECT v FROM lookup WHERE id = 1")
            cursor.execute("UPDATE items SET v = v + 1 WHERE id = %s", (self.own_item(),))
        self.items += 2
        self.notes += 1

    def cursor(self):
        """Reads rows of all shards by a cursor of the server, some at a time."""
        self.connection.autocommit = False
        with self.connection, self.connection.cursor("some") as cursor:
            cursor.itersize = 10
            cursor.execute(
                "SELECT id, v FROM items WHERE id > %s AND id <= %s", self.all_own_items()
            )
            rows = cursor.fetchall()
        self.expect_own_items(len(rows))

    def copy_in(self):
        self.connection.autocommit = True
        rows = "".join(f"{self.take_id()}\t0\n" for _ in range(ROWS_OF_COPY))
        with self.connection.cursor() as cursor:
            cursor.copy_expert("COPY items (id, v) FROM STDIN", io.StringIO(rows))
        self.inserted += ROWS_OF_COPY

    def copy_out(self):
        self.connection.autocommit = True
        first, last = self.all_own_items()
        query = f"SELECT id, v FROM items WHERE id > {first} AND id <= {last}"
        rows = io.StringIO()
        with self.connection.cursor() as cursor:
            cursor.copy_expert(f"COPY ({query}) TO STDOUT", rows)
        self.expect_own_items(rows.getvalue().count("\n"))

    def all_own_items(self):
        return BASE, BASE + SESSIONS * ITEMS_OF_SESSION

    def expect_own_items(self, count):
        if count != SESSIONS * ITEMS_OF_SESSION:
            self.failures.append(f"a read returned {count} rows")


sessions = [Session(number) for number in range(SESSIONS)]
for session in sessions:
    session.start()
sys.stdin.read()
stopping.set()
for session in sessions:
    session.join()
for session in sessions:
    for failure in session.failures:
        print("failed", " ".join(failure.split()))
    print("acknowledged", session.inserted, session.items, session.notes)
