//! Hostile clients: whatever they send, the daemon stays upright, its books
//! are right, its memory is bounded, and its journal tells its state.

use proptest::prelude::*;

use super::{restart::told, *};

#[derive(Clone, Debug)]
enum Act {
    Send(usize, u32, u32, Vec<u8>),
    Read(usize),
    Boot(u16),
    Kill(u16),
    Review,
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "/",
        "/a",
        "a",
        "a/b",
        "device/vif/0",
        "/local/domain/5",
        "/local/domain/6/x",
        "@introduceDomain",
        "@releaseDomain",
        "@x",
        "t",
        "n5",
        "r6",
        "b0",
        "w7",
        "T",
        "F",
        "0",
        "1",
        "5",
        "6",
        "65535",
        "-1",
        "check",
        "quota",
        "",
        "//",
        "/a/",
        "\u{fffd}",
    ]);
    let words = prop::collection::vec(word, 0..4).prop_map(|words| {
        let mut bytes: Vec<u8> = words.join("\0").into_bytes();
        bytes.push(0);
        bytes
    });
    prop_oneof![
        8 => words,
        1 => prop::collection::vec(any::<u8>(), 0..64),
        1 => (1usize..=4096).prop_map(|len| vec![b'a'; len]),
        1 => (1usize..2040).prop_map(|len| {
            let mut bytes = "a/".repeat(len).into_bytes();
            let last = bytes.len() - 1;
            bytes[last] = 0;
            bytes
        }),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let kind = prop_oneof![20 => 0u32..23, 1 => any::<u32>()];
    let tx = prop_oneof![3 => Just(0), 3 => 1u32..4, 1 => any::<u32>()];
    prop_oneof![
        40 => (0usize..4, kind, tx, payload())
            .prop_map(|(who, kind, tx, payload)| Act::Send(who, kind, tx, payload)),
        8 => (0usize..4).prop_map(Act::Read),
        1 => (5u16..8).prop_map(Act::Boot),
        1 => (5u16..8).prop_map(Act::Kill),
        1 => Just(Act::Review),
    ]
}

proptest! {
    #[test]
    fn any_sequence_of_messages_is_survived(acts in prop::collection::vec(act(), 1..150)) {
        let mut world = World::new([5, 6, 7]);
        let peer_of = |world: &World, who: usize| match who {
            0 => world.dom0,
            guest => PeerId::Guest(DomId(4 + u16::try_from(guest).unwrap())),
        };
        for act in acts {
            match act {
                Act::Send(who, kind, tx, payload) => {
                    let peer = peer_of(&world, who);
                    // As the server does: no request while replies wait.
                    if world.core.gate(peer, world.now) == crate::xenstore::core::Gate::Open {
                        world.send(peer, kind, tx, &payload);
                    }
                }
                Act::Read(who) => {
                    let peer = peer_of(&world, who);
                    for message in world.drain(peer) {
                        prop_assert!(message.payload.len() <= 4096);
                    }
                }
                Act::Boot(dom) => world.domains.create(dom),
                Act::Kill(dom) => world.domains.destroy(dom),
                Act::Review => world.review(),
            }
            for (_, state) in world.core.peers() {
                prop_assert!(state.outbox.event_bytes() <= 512 * 1024 + 8192);
                prop_assert!(state.outbox.replies() <= 20);
            }
        }
        prop_assert!(world.core.tree.check());
        let restarted = world.restarted();
        prop_assert_eq!(restarted.tree.dump(), world.core.tree.dump());
        prop_assert_eq!(told(&restarted), told(&world.core));
        let again = Core::restored(world.core.snapshot());
        prop_assert_eq!(told(&again), told(&world.core));
    }
}
