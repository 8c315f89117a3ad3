"""Flow telemetry in the dialects that products have, each brought into the one shape, `lab.model.Sighting`.

Pure: `netflow` (NetFlow v9, IPFIX, PSAMP datagrams), `frames` (packet headers), `cloud` (what a cloud's platform
would log), `aws` and `azure` (its lines), `flows` (records of a flow made one sighting). At the rim: `exporters`
(softflowd on mirror ports), `port_tap` (headers at the switch ports), `readings` (an arm's own records), `long_flow`
(runs on a host).
"""
