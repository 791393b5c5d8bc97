/* What bindgen reads; the allow list is in build.rs. */
#include <stdio.h>
#include <sys/types.h>
#include <criu/criu.h>
#include <compel/infect.h>
#include <compel/log.h>
