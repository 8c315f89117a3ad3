/* The service behind an interpreter. Python calls serve_main through ctypes; bash loads it as a builtin of its own
 * (`enable -f`), whose interface, bash's loadables.h, this repeats so that no headers of bash's are needed. */
#include <stdlib.h>

#include "serve.h"

struct word {
    char *text;
    int flags;
};

struct words {
    struct words *next;
    struct word *word;
};

struct builtin {
    char *name;
    int (*run)(struct words *);
    int flags;
    char *const *long_doc;
    const char *short_doc;
    char *handle;
};

enum { ENABLED = 1, MOST_WORDS = 32 };

static int run(struct words *list)
{
    char *argv[MOST_WORDS + 1] = {"serve"};
    int argc = 1;
    for (; list && argc < MOST_WORDS; list = list->next)
        argv[argc++] = list->word->text;
    return serve_main(argc, argv);
}

static char *const long_doc[] = {"labctl's built-in service", NULL};
struct builtin serve_struct = {"serve", run, ENABLED, long_doc, "serve OPTIONS", NULL};
