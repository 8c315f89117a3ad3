/* Preloaded into softflowd: it asks libpcap for a timeout of 0, with which packets lie in the kernel until a block of
 * memory is full of them, on a quiet port for ever. In libpcap's immediate mode they come as they are.
 * The same defect and remedy: github.com/irino/softflowd pull request 71.
 */
#define _GNU_SOURCE
#include <dlfcn.h>

typedef int setter(void *, int);

int pcap_set_timeout(void *pcap, int ms)
{
    setter *immediate = (setter *)dlsym(RTLD_NEXT, "pcap_set_immediate_mode");
    setter *timeout = (setter *)dlsym(RTLD_NEXT, "pcap_set_timeout");
    if (immediate)
        immediate(pcap, 1);
    return timeout(pcap, ms);
}
