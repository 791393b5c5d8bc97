/*
 * System V shared memory, attached twice.
 * Id, contents and both attachments are what they were. (The segment lives in the machine's ipc namespace.)
 */
#include "program.h"
#include <sys/shm.h>

#define BYTES (256 * 1024ul)

static char *first, *second;
static int id;

void set_up(void)
{
	id = must(shmget(IPC_PRIVATE, BYTES, IPC_CREAT | 0600));
	first = must(shmat(id, NULL, 0));
	second = must(shmat(id, NULL, SHM_RDONLY));
	/* The segment goes away with its last attachment, however this program ends. */
	must(shmctl(id, IPC_RMID, NULL));
	fill(first, BYTES, 1);
}

void sabotage(void)
{
	first[BYTES / 2] ^= 1;
}

void check(void)
{
	struct shmid_ds segment;

	expect_filled(first, BYTES, 1, "first attachment");
	expect_filled(second, BYTES, 1, "second attachment");
	must(shmctl(id, IPC_STAT, &segment));
	expect_equal(segment.shm_nattch, 2, "attachments");
}
