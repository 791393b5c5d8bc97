/*
 * An alternate signal stack, and handlers with flags and masks of their own.
 * A signal after the restore runs its handler on that stack, with the mask it asked for, as often as it should.
 */
#include "program.h"

#define STACK_BYTES 65536

static char *stack;
static volatile sig_atomic_t on_stack, masked, once;

static void on_usr1(int signal, siginfo_t *info, void *context)
{
	char here;
	sigset_t mask;

	(void)signal;
	(void)context;
	if (&here >= stack && &here < stack + STACK_BYTES && info->si_pid == getpid())
		on_stack++;
	sigprocmask(SIG_SETMASK, NULL, &mask);
	if (sigismember(&mask, SIGHUP) && sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGINT))
		masked++;
}

static void on_usr2(int signal)
{
	(void)signal;
	once++;
}

void set_up(void)
{
	struct sigaction first = {.sa_sigaction = on_usr1, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	struct sigaction second = {.sa_handler = on_usr2, .sa_flags = SA_RESETHAND | SA_NODEFER};
	stack_t alternate = {.ss_size = STACK_BYTES};

	alternate.ss_sp = stack = map_anonymous(STACK_BYTES, MAP_PRIVATE);
	must(sigaltstack(&alternate, NULL));
	sigaddset(&first.sa_mask, SIGHUP);
	must(sigaction(SIGUSR1, &first, NULL));
	must(sigaction(SIGUSR2, &second, NULL));
}

void sabotage(void)
{
	must(sigaltstack(&(stack_t){.ss_flags = SS_DISABLE}, NULL));
}

void check(void)
{
	struct sigaction now;
	stack_t alternate;

	must(sigaltstack(NULL, &alternate));
	expect(alternate.ss_sp == stack && alternate.ss_size == STACK_BYTES, "the alternate stack is elsewhere");
	must(raise(SIGUSR1));
	must(kill(getpid(), SIGUSR1));
	expect(eventually(on_stack == 2), "%d handlers ran on the alternate stack", on_stack);
	expect_equal(masked, 2, "handlers that ran with their mask");
	must(raise(SIGUSR2));
	expect_equal(once, 1, "the handler that runs once");
	must(sigaction(SIGUSR2, NULL, &now));
	expect(now.sa_handler == SIG_DFL, "the handler that runs once is still set");
}
