/*
 * A process with a host name and System V objects of its own (uts and ipc namespaces): shared memory, semaphores and a
 * queue with messages. Names, ids, contents, values and messages are what they were.
 */
#include "program.h"
#include <sched.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

#define BYTES (300 * 1024ul)

struct message {
	long type;
	char text[32];
};

static int memory_id, semaphores, queue;
static char *memory;

void set_up(void)
{
	must(unshare(CLONE_NEWUTS | CLONE_NEWIPC));
	must(sethostname("kernel-state", 12));
	memory_id = must(shmget(0x1234, BYTES, IPC_CREAT | 0600));
	memory = must(shmat(memory_id, NULL, 0));
	fill(memory, BYTES, 1);
	semaphores = must(semget(0x1234, 3, IPC_CREAT | 0600));
	must(semctl(semaphores, 1, SETVAL, 5));
	queue = must(msgget(0x1234, IPC_CREAT | 0600));
	must(msgsnd(queue, &(struct message){3, "first"}, 32, 0));
	must(msgsnd(queue, &(struct message){1, "second"}, 32, 0));
}

void sabotage(void)
{
	memory[BYTES / 2] ^= 1;
	must(semctl(semaphores, 1, SETVAL, 4));
}

void check(void)
{
	char name[64] = "";
	struct message message = {0};

	must(gethostname(name, sizeof name));
	expect(strcmp(name, "kernel-state") == 0, "the host is called %s", name);
	expect_equal(shmget(0x1234, BYTES, 0), memory_id, "id of the shared memory");
	expect_filled(memory, BYTES, 1, "shared memory");
	expect_equal(semget(0x1234, 3, 0), semaphores, "id of the semaphores");
	expect_equal(semctl(semaphores, 1, GETVAL), 5, "semaphore");
	expect_equal(msgget(0x1234, 0), queue, "id of the queue");
	expect(msgrcv(queue, &message, 32, 1, IPC_NOWAIT) == 32 && strcmp(message.text, "second") == 0,
	       "message of type 1: `%s`", message.text);
	expect(msgrcv(queue, &message, 32, 0, IPC_NOWAIT) == 32 && strcmp(message.text, "first") == 0, "first message: `%s`",
	       message.text);
}
