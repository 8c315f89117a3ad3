#!/bin/sh
# Show what the bridges here forward to nftables (up), or no longer (down).
set -eu
shown() { sysctl -qw net.bridge.bridge-nf-call-iptables="$1" net.bridge.bridge-nf-call-ip6tables="$1"; }
case "$1" in
up)
    zones= number=0
    for bridge in $(ip -o link show type bridge | cut -d: -f2); do
        number=$((number + 1))
        zones="$zones$bridge : $number, "
    done
    nft -f - <<END
table inet labctl_zones
delete table inet labctl_zones
table inet labctl_zones {
    chain prerouting {
        type filter hook prerouting priority -450; policy accept;
        ct zone set iifname map { $zones }
    }
}
END
    sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0
    shown 1 ;;
down)
    shown 0
    sysctl -qw net.netfilter.nf_conntrack_tcp_loose=1
    nft delete table inet labctl_zones 2>/dev/null || true ;;
ready)
    test "$(cat /proc/sys/net/bridge/bridge-nf-call-iptables)" = 1
    nft list table inet labctl_zones >/dev/null ;;
esac
