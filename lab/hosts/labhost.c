/* labhost: what runs on a host of the lab. `hosts` makes all hosts of a lab, `init` a single one, `contain` is the first
 * process of a container, `place` writes a file there, `exe` tells what a process executes, `serve` is a built-in
 * service. */
#include <stdio.h>
#include <string.h>

#include "init.h"
#include "serve.h"

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "init"))
        return init_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "hosts"))
        return hosts_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "contain"))
        return contain_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "place"))
        return place_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "exe"))
        return exe_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "serve"))
        return serve_main(argc - 1, argv + 1);
    fputs("labhost: init --socket PATH [--hostname NAME]\n"
          "labhost: hosts <PLAN\n"
          "labhost: contain --socket PATH --lifeline PATH --name NAME --plan FILE --keep CAPABILITIES\n"
          "labhost: place PATH [SOURCE]\n"
          "labhost: exe PID\n"
          "labhost: serve --control PATH --host H --process P --user U --uid N [--observe-icmp] [--vulnerable]\n"
          "         [--pose PATH]\n",
          stderr);
    return 2;
}
