#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use super::*;

const REPLACE_AFTER: Duration = Duration::from_secs(10);

fn well() -> Signs {
    let silent = Duration::from_millis(50);
    Signs { leads: false, role: Role::Voter, silent, matched: 900, snapshot: false, lost: false }
}

fn condition(signs: Signs) -> Condition {
    signs.condition(1000, &Patience { replace_after: REPLACE_AFTER, ..Patience::default() })
}

fn after(seconds: u64, signs: Signs) -> Condition {
    condition(Signs { silent: Duration::from_secs(seconds), ..signs })
}

#[test]
fn a_voter_is_silent_and_then_gone() {
    assert_eq!([0, 1, 2, 9, 10].map(|seconds| after(seconds, well())), {
        use Condition::{Gone, Silent, Well};
        [Well, Well, Silent, Silent, Gone]
    });
    assert_eq!(after(1000, Signs { leads: true, matched: 0, ..well() }), Condition::Well, "the leader itself");
}

#[test]
fn a_learner_gets_the_time_that_it_takes() {
    let learner = Signs { role: Role::Learner, ..well() };
    assert_eq!([10, 29, 30].map(|seconds| after(seconds, learner)), {
        use Condition::{Gone, Silent};
        [Silent, Silent, Gone]
    });
    let unborn = Signs { matched: 0, ..learner };
    assert_eq!([0, 29, 30].map(|seconds| after(seconds, unborn)), {
        use Condition::{Gone, New};
        [New, New, Gone]
    });
    let filled = Signs { snapshot: true, ..unborn };
    assert_eq!([0, 299, 300].map(|seconds| after(seconds, filled)), {
        use Condition::{Behind, Gone, Silent};
        [Behind, Silent, Gone]
    });
}

#[test]
fn who_lacks_entries_is_behind_and_who_lost_all_is_lost() {
    let lacks = |matched| condition(Signs { matched, ..well() });
    assert_eq!([0, 871, 872, 1000].map(lacks), {
        use Condition::{Behind, Silent, Well};
        [Silent, Behind, Well, Well]
    });
    assert_eq!(condition(Signs { lost: true, ..well() }), Condition::Lost);
    assert_eq!(after(1000, Signs { lost: true, ..well() }), Condition::Lost);
}

fn peer(number: u8) -> PeerId {
    PeerId::from_public_key([number; 32])
}

fn candidate(number: u8) -> Candidate {
    Candidate { site: number.to_string(), ..unknown(peer(number), &Objective::default()) }
}

fn member(id: u64, condition: Condition) -> Member {
    Member { id, peer: peer(id as u8), role: Role::Voter, condition }
}

fn target(members: &[Member], live: &[u8], avoided: &[u8], wanted: usize) -> BTreeSet<PeerId> {
    let live = live.iter().map(|number| candidate(*number)).collect();
    let avoided = avoided.iter().map(|number| peer(*number)).collect();
    let around = Surroundings { leader: 1, members, live, avoided };
    around.target(7, wanted, &Objective::default(), |_| None).into_iter().collect()
}

fn peers(numbers: &[u8]) -> BTreeSet<PeerId> {
    numbers.iter().map(|number| peer(*number)).collect()
}

#[test]
fn who_is_gone_is_replaced_and_who_is_silent_is_not() {
    let mut members = [1, 2, 3].map(|id| member(id, Condition::Well));
    assert_eq!(target(&members, &[1, 2, 3, 4], &[], 3), peers(&[1, 2, 3]));
    members[2].condition = Condition::Silent;
    assert_eq!(target(&members, &[1, 2, 4], &[], 3), peers(&[1, 2, 3]), "nobody has heard of it, and it may come back");
    members[2].condition = Condition::Gone;
    assert_eq!(target(&members, &[1, 2, 3, 4], &[], 3), peers(&[1, 2, 4]), "its peer is heard of, its replica is not");
}

#[test]
fn a_peer_that_failed_is_avoided_unless_there_is_nobody_else() {
    let members = [1, 2].map(|id| member(id, Condition::Well));
    assert_eq!(target(&members, &[1, 2, 3, 4], &[3], 3), peers(&[1, 2, 4]));
    assert_eq!(target(&members, &[1, 2, 3], &[3], 3), peers(&[1, 2, 3]));
}
