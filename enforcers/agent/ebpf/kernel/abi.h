/* What kernel programs and user space agree on: names, keys, values, records. Little endian, natural alignment.
 *
 * Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d. Ports are in host order. Times are CLOCK_MONOTONIC nanoseconds. */
#ifndef ABI_H
#define ABI_H

enum { MAX_HOSTS = 1024, SLOTS = 2 * MAX_HOSTS }; /* host `index` owns slots 2*index and 2*index+1 */

enum mode { MODE_OFF = 0, MODE_MONITOR = 1, MODE_ENFORCE = 2 };       /* of a host */
enum on_silence { SILENCE_IGNORED = 0, SILENCE_OPENS = 1, SILENCE_CLOSES = 2 }; /* when the agent misses its deadline */
enum service_mode { AS_HOST = 0, ONLY_MONITOR = 1, ALWAYS_ENFORCE = 2 }; /* of one service, over the host's */

enum host_flags {
    HAS_PREFIXES = 1,    /* peers that `peers` lacks are looked up in `peer_prefixes` */
    HAS_RANGES = 2,      /* ports that `services` lacks are looked up in `service_ranges` */
    JUDGES_LOOPBACK = 4, /* 127.0.0.0/8 and ::1 too */
    REFUSES_RAW = 8,     /* raw sockets only for owners whom the verdict of `raw_service` allows */
    SENDS_CLAIM = 16,    /* the SYN of a verdict marked WANTS_CLAIM carries the sender's identity */
    READS_CLAIM = 32,    /* a claim in a SYN restricts further */
    NO_RECORDS = 64,     /* no record of allowed flows at their end; counted in `totals` alone */
    KEEPS_TOTALS = 128,  /* `totals` counts every flow, not only those whose record was lost */
};

/* Classes that have a fixed meaning; all others are the policy compiler's. */
enum { OWNER_UNKNOWN = 0 /* of another host, and nobody said */, OWNER_KERNEL = 1 /* who answers an echo request */ };
enum { ANY_EXE = 0, ANY_UID = 0xffffffff };
enum { PROVISIONAL = 0x80000000 }; /* bit of an exe_id that the kernel gave: seen, not yet hashed */
enum { DIR_IN = 0, DIR_OUT = 1, DIR_BIT = 0x8000 };

struct host_config { /* hosts: netns cookie (u64) -> this. One update of it is the switch of a whole host */
    __u64 epoch;     /* unique to each switch: (CLOCK_MONOTONIC ns & ~1023) | index */
    __u32 index;     /* < MAX_HOSTS: the host's rings, heartbeat and counters */
    __u32 slot;      /* the policy tables in force */
    __u32 flags;     /* host_flags */
    __u8 mode;
    __u8 on_silence;
    __u8 default_in;  /* 1: allow */
    __u8 default_out;
    __u16 owner_other;   /* class of a local owner that `owners` lacks */
    __u16 peer_other;    /* class of an address that peers and prefixes lack */
    __u16 tcp_other;     /* service classes, below DIR_BIT */
    __u16 udp_other;
    __u16 icmp_service;
    __u16 other_service; /* any other protocol; datagram parts without ports */
    __u16 raw_service;   /* opening a raw socket, with peer_other, OWNER_UNKNOWN and DIR_OUT */
    __u16 unused;
};

struct exe_key {     /* exes: this -> exe_id (u32). Any write, rename or replacement makes another key */
    __u64 inode;
    __u64 changed;   /* ctime: seconds * 1,000,000,000 + nanoseconds */
    __u32 device;    /* the kernel's dev_t: major << 20 | minor */
    __u32 path;      /* FNV-1a over the path's names within its file system, leaf first: tells hard links apart */
};

struct script_key {  /* scripts: this -> exe_id (u32) of the script: what an interpreter runs */
    __u32 interpreter; /* exe_id */
    __u32 words;       /* 1 or 2: how many arguments after argv[0] */
    __u64 arguments;   /* FNV-1a-64 over these arguments, each with its NUL */
};

struct owner_key { __u32 exe_id, uid; };           /* owners: -> owner class (u16); looked up {exe, uid}, {exe, ANY_UID}, {ANY_EXE, uid} */
struct peer_key { __u8 address[16]; };             /* peers */
struct prefix_key { __u32 length; __u8 address[16]; }; /* peer_prefixes: LPM; IPv4 lengths + 96 */
enum { PEER_IS_SELF = 1 };                         /* an address of this host itself */
struct peer_value { __u16 peer; __u16 flags; };
struct service_key { __u16 port; __u8 proto; __u8 unused; };           /* services */
struct range_key { __u32 length; __u8 proto; __u8 port[2]; __u8 unused; }; /* service_ranges: LPM; 8 + bits; port in network order */
struct service_value { __u16 service; __u8 mode; __u8 unused; };       /* service_mode */
struct verdict_key { __u16 peer, local_owner, peer_owner, service; };  /* service | DIR_BIT for DIR_OUT */
enum { MONITORED = 1, WANTS_CLAIM = 2, SEEN = 128 };
struct verdict_value { __u32 rule; __u8 allow; __u8 flags; __u16 unused; }; /* rule: the compiler's number, 0 "default" */

struct task_tag {   /* tasks (task storage; user space writes by pidfd): whose doing */
    __u32 exe_id;     /* of the script, where one is known, else of the executable */
    __u32 script_of;  /* 0, or the exe_id of the interpreter that runs it */
    struct exe_key exe;
    __u64 epoch;      /* kernel's own cache from here on: of which switch `owner` is */
    __u32 uid;
    __u16 owner;
    __u16 unused;
};

/* --- records: in the rings of a host ---- */
enum record_kind { FLOW = 1, EXEC = 2, HANDED_ON = 3, FIRST_SEEN = 4 };
enum verdict { DENY = 0, ALLOW = 1, WOULD_DENY = 2, UNJUDGED = 3 };
enum flow_state { FLOW_CLOSED = 0, FLOW_LIVE = 1, FLOW_REFUSED = 2, FLOW_REVOKED = 3, FLOW_UNANSWERED = 4 };

struct flow_record { /* in `records`; also what the iterators tcp_flows and datagram_flows print */
    __u16 kind, size;
    __u8 proto, dir, verdict, state;
    __u64 opened, closed;   /* closed 0: live */
    __u64 sent, received;   /* bytes of payload, by this end */
    __u32 packets_sent, packets_received; /* TCP: segments */
    __u8 local[16], remote[16]; /* local all zero: refused before the kernel chose one */
    __u16 local_port, remote_port; /* ICMP: local_port is the echo identifier of what was sent, remote_port of what came */
    __u32 exe_id, uid, tgid;
    __u32 peer_exe_id, peer_uid; /* same host: known; across hosts: what the SYN claimed; else 0, ANY_UID */
    __u32 rule;
    __u64 cgroup;
    __u64 netns;             /* cookie */
};

struct exec_record { /* in `events`: an executable (or arguments of an interpreter) that nobody has named yet */
    __u16 kind, size;
    __u32 exe_id;            /* provisional, already in `exes` under `exe` */
    __u64 at;
    struct exe_key exe;
    __u32 tgid, uid;         /* tgid as the initial pid namespace counts */
    __u32 pid_in_ns;         /* as the process itself counts */
    __u32 path_bytes, argument_bytes;
    __u32 unused;
    __u64 cgroup, netns;
    char path[256];          /* names within the file system, leaf first, each with its NUL */
    char arguments[256];     /* the beginning of argv, each with its NUL */
};

struct handed_on { /* in `events`: somebody else than the binder receives on a listener's child; run adopt_listeners */
    __u16 kind, size;
    __u32 port;
    __u32 exe_id, tgid;
    __u32 former_exe_id, former_tgid;
    __u64 at;
    __u64 netns;
};

struct counters { /* counters: index -> this */
    __u64 records_lost, events_lost; /* ring full; the flow is in `totals` */
    __u64 denied, would_denied;
    __u64 untagged;      /* packets of a socket whose owner is not known; denied when enforcing */
    __u64 unnamed;       /* execs of what `exes` had not yet */
    __u64 out_of_memory; /* socket or task storage, flow table */
    __u64 first_seen;
    __u64 raw_refused, packet_sockets; /* frames of packet sockets stopped at the interface */
    __u64 revoked, adopted;
};

struct totals_key { /* totals: flows by who, whom, what */
    __u32 exe_id, uid;
    __u8 remote[16];
    __u16 port;
    __u8 proto, dir, verdict, unused[3];
    __u32 rule, index;
};
struct totals_value { __u64 flows, sent, received, packets, last; };

#endif
