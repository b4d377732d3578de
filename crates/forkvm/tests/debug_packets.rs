//! Packets of a debugger, right and wrong ones: nobody but the request they are about notices.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::OnceLock;
use std::time::Duration;

use common::gdb::{Client, assert_in_order, boot, debugged};
use common::{Tenant, few, scaled};
use proptest::prelude::*;

/// Packets as a debugger sends them, more or less.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![
        Just("0".to_owned()),
        Just("401000".into()),
        Just("7e0000004000".into()),
        Just("ffffffffffffffff".into()),
        any::<u64>().prop_map(|n| format!("{n:x}")),
        (0u64..1 << 20).prop_map(|n| format!("{n:x}")),
    ];
    let command = prop_oneof![
        Just("g"),
        Just("G"),
        Just("m"),
        Just("M"),
        Just("X"),
        Just("Z0,"),
        Just("z0,"),
        Just("p"),
        Just("P"),
        Just("vCont;s"),
        Just("vCont;r"),
        Just("H"),
        Just("qXfer:auxv:read::"),
        Just("qXfer:features:read:target.xml:"),
        Just("qSupported:"),
        Just("QStartNoAckMode"),
        Just("s"),
        Just("T"),
        Just("qRcmd,"),
        Just("vFile:open:"),
        Just("R"),
    ];
    let tail = prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(any::<u8>(), 0..64),
        prop::collection::vec(prop::sample::select(b"0123456789abcdef".to_vec()), 0..1800),
    ];
    (
        command,
        number.clone(),
        prop::sample::select(vec![",", ":", ";", ""]),
        number,
        tail,
    )
        .prop_map(|(command, first, between, second, tail)| {
            let mut packet = format!("{command}{first}{between}{second}:").into_bytes();
            packet.extend(tail);
            packet
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: few(64) as u32, max_shrink_iters: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_packet_harms_anybody_else(packets in prop::collection::vec(packet(), 1..40)) {
        static TENANT: OnceLock<Tenant> = OnceLock::new();
        if common::have_kvm() {
            let tenant = TENANT.get_or_init(|| boot("debuggee", |config| {
                config.debugging.timeout = scaled(Duration::from_millis(500));
            }));
            // The request may be answered or fail, as the debugger had it.
            let _ = debugged(tenant, "/number/7", true, |addresses| {
                let mut client = Client::connect(&addresses.next());
                for packet in &packets {
                    client.packet(packet);
                    client.send(b"+");
                }
            });
            let reply = tenant.get("/number/7");
            assert_in_order(reply.text(), &["triple 21 "]);
            tenant.assert_pristine();
        }
    }
}
