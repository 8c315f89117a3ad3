/* Every check that can be left out, by -DWITHOUT_…: only tests do so, to show that each is needed. */
#ifndef LABCTL_SWITCH_CHECKS_H
#define LABCTL_SWITCH_CHECKS_H
#ifdef WITHOUT_WINDOWS
#define CHECK_WINDOWS 0
#else
#define CHECK_WINDOWS 1
#endif
#ifdef WITHOUT_STATE
#define CHECK_STATE 0
#else
#define CHECK_STATE 1
#endif
#ifdef WITHOUT_EXACT_RESET
#define CHECK_EXACT_RESET 0
#else
#define CHECK_EXACT_RESET 1
#endif
#ifdef WITHOUT_SIMULTANEOUS_OPEN
#define CHECK_SIMULTANEOUS_OPEN 0
#else
#define CHECK_SIMULTANEOUS_OPEN 1
#endif
#ifdef WITHOUT_FLAG
#define CHECK_FLAG 0
#else
#define CHECK_FLAG 1
#endif
#ifdef WITHOUT_RELATED
#define CHECK_RELATED 0
#else
#define CHECK_RELATED 1
#endif
#ifdef WITHOUT_FRAGMENTS
#define CHECK_FRAGMENTS 0
#else
#define CHECK_FRAGMENTS 1
#endif
#ifdef WITHOUT_OVERLAP
#define CHECK_OVERLAP 0
#else
#define CHECK_OVERLAP 1
#endif
#ifdef WITHOUT_ARP
#define CHECK_ARP 0
#else
#define CHECK_ARP 1
#endif
#ifdef WITHOUT_ND
#define CHECK_ND 0
#else
#define CHECK_ND 1
#endif
#ifdef WITHOUT_ADDRESS
#define CHECK_ADDRESS 0
#else
#define CHECK_ADDRESS 1
#endif
#ifdef WITHOUT_MAC
#define CHECK_MAC 0
#else
#define CHECK_MAC 1
#endif
#ifdef WITHOUT_STANDING
#define CHECK_STANDING 0
#else
#define CHECK_STANDING 1
#endif
#ifdef WITHOUT_REJUDGE
#define CHECK_REJUDGE 0
#else
#define CHECK_REJUDGE 1
#endif
#endif
