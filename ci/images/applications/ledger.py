"""Keeps books in a tree of processes: what the scenarios `tree` and `stubborn` move.

Three children of two threads each count in memory and write every number into a file that stays open; the main process counts
what it prints, and what clients ask it to (`INCR` in redis' protocol). Parent and children talk through socket pairs. `CHECK` has
every process compare its files with its memory, byte by byte, and answers with pids and counts, or with what does not agree.

    ledger.py DIRECTORY [--deaf]          --deaf: takes no notice of SIGTERM, SIGINT and SIGHUP
"""

import os
import signal
import socket
import sys
import threading
import time

CHILDREN, THREADS = 3, 2
PORT = 6379


class Book:
    """A count in memory, and a file that says the same."""

    def __init__(self, path):
        self.lock, self.count, self.size = threading.Lock(), 0, 0
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def add(self):
        with self.lock:
            self.count += 1
            self.size += os.write(self.file, b"%d\n" % self.count)
            return self.count

    def check(self):
        with self.lock:
            wanted = b"".join(b"%d\n" % number for number in range(1, self.count + 1))
            found = b""
            while part := os.pread(self.file, 1 << 20, len(found)):
                found += part
            if found != wanted or self.size != len(wanted):
                raise ValueError(f"{os.getpid()}: a file of {len(found)} bytes does not say {self.count}")
            return self.count


def every(seconds, what):
    def work():
        while True:
            what()
            time.sleep(seconds)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def child(directory, number, line):
    books = [Book(f"{directory}/child-{number}-{thread}") for thread in range(THREADS)]
    threads = [every(0.02, book.add) for book in books]
    while line.recv(1):
        try:
            if not all(thread.is_alive() for thread in threads):
                raise ValueError(f"{os.getpid()}: a thread is gone")
            line.send(b"%d:%d" % (os.getpid(), sum(book.check() for book in books)))
        except ValueError as error:
            line.send(b"!" + str(error).encode())
    os._exit(0)


class Ledger:
    def __init__(self, directory):
        self.lock, self.children = threading.Lock(), []
        for number in range(CHILDREN):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = os.fork()
            if pid == 0:
                ours.close()
                child(directory, number, theirs)
            theirs.close()
            self.children.append((pid, ours))
        self.entries, self.ticks = Book(f"{directory}/entries"), Book(f"{directory}/ticks")
        every(0.05, lambda: print(f"tick {self.ticks.add()}", flush=True))

    def check(self):
        pids, total = [os.getpid()], 0
        with self.lock:
            for pid, line in self.children:
                line.send(b"?")
                answer = line.recv(200).decode()
                if answer.startswith("!"):
                    raise ValueError(answer[1:])
                said, count = map(int, answer.split(":"))
                if said != pid:
                    raise ValueError(f"the child {pid} says it is {said}")
                pids.append(pid)
                total += count
        entries, ticks = self.entries.check(), self.ticks.check()
        return f"pids={','.join(map(str, pids))} counted={total} entries={entries} ticks={ticks}"

    def answer(self, words):
        match words[0].upper():
            case "INCR":
                return f":{self.entries.add()}"
            case "CHECK":
                try:
                    return "+" + self.check()
                except ValueError as error:
                    return f"-{error}"
            case _:
                return "-unknown"

    def serve(self, peer):
        with peer, peer.makefile("rwb") as stream:
            try:
                while line := stream.readline():
                    words = []
                    for _ in range(int(line[1:])):
                        length = int(stream.readline()[1:])
                        words.append(stream.read(length + 2)[:-2].decode())
                    stream.write(self.answer(words).encode() + b"\r\n")
                    stream.flush()
            except OSError:
                pass


def main():
    if "--deaf" in sys.argv:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    ledger = Ledger(sys.argv[1])
    listener = socket.create_server(("0.0.0.0", PORT))
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=ledger.serve, args=(peer,), daemon=True).start()


main()
