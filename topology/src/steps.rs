//! Which change brings a group one step nearer to where its replicas should be.
//!
//! [`next_step`] is computed anew from what stands, every time: there is no plan that a crash could lose, and a leader that
//! comes in the middle goes on from the configuration that it finds.
//!
//! Promises, if each step is carried out or not before the next is asked for:
//! - one change at a time, and one replica that is being filled at a time;
//! - no change leaves fewer live voters than a majority, of the old voters or of the new ones;
//! - a live voter goes only when its stand-in has the log and votes from the same change on, or when nobody is to stand in;
//! - a leader that should go hands over first, to a voter that stays;
//! - when nothing changes around it, a group comes to its target, and stays there.

use canal_proto::PeerId;

/// Whether a replica votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It votes.
    Voter,
    /// It has no vote; it is being filled.
    Learner,
}

/// How a replica is, as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It has the log, or lacks only its newest entries.
    Well,
    /// It is there, and lacks entries.
    Behind,
    /// It does not answer just now; it may come back at any time.
    Silent,
    /// It was never heard of: it has to be created.
    New,
    /// Its peer has been silent for so long that it counts as gone for good.
    Gone,
    /// Its peer is there and does not hold it: what it had is lost.
    Lost,
}

/// A replica of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: u64,
    /// The peer that holds it.
    pub peer: PeerId,
    /// Whether it votes.
    pub role: Role,
    /// How it is.
    pub condition: Condition,
}

impl Member {
    /// Whether it would vote for a change now.
    fn is_live(&self) -> bool {
        !matches!(self.condition, Condition::Gone | Condition::Lost | Condition::Silent)
    }

    fn is_gone(&self) -> bool {
        matches!(self.condition, Condition::Gone | Condition::Lost)
    }
}

/// How a group stands and where it should go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// All replicas.
    pub members: Vec<Member>,
    /// A change is half done: two majorities are needed until it is.
    pub joint: bool,
    /// The replica that leads, and asks.
    pub leader: u64,
    /// Replicas wanted.
    pub wanted: usize,
    /// The peers that should hold them, best first: from [`crate::choose`]. No peer whose replica is gone is among them.
    pub target: Vec<PeerId>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Add a learner on this peer.
    AddLearner(PeerId),
    /// Create this replica on its peer; it can be done twice.
    Create(u64),
    /// One change of the configuration.
    Change {
        /// Learners that vote from now on.
        promote: Vec<u64>,
        /// Voters that go.
        remove: Vec<u64>,
    },
    /// Hand leadership to this voter.
    Transfer(u64),
    /// Remove this learner.
    RemoveLearner(u64),
    /// Nothing can be done just now.
    Wait(Wait),
    /// The group is where it should be.
    Done,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The end of a joint configuration; Raft leaves it by itself.
    Joint,
    /// This replica is being filled.
    CatchUp(u64),
    /// Too few voters are live for a change.
    Majority,
    /// Nobody else can lead.
    Successor,
}

/// The next step.
pub fn next_step(standing: &Standing) -> Step {
    if standing.joint {
        return Step::Wait(Wait::Joint);
    }
    if let Some(step) = standing.give_up() {
        return step;
    }
    if let Some(learner) = standing.of(Role::Learner).min_by_key(|learner| learner.id) {
        return match learner.condition {
            Condition::New => Step::Create(learner.id),
            Condition::Well => standing.promote(learner),
            _ => Step::Wait(Wait::CatchUp(learner.id)),
        };
    }
    let held = |peer: &PeerId| standing.members.iter().any(|member| member.peer == *peer);
    match standing.target.iter().find(|peer| !held(peer)) {
        Some(_) if !standing.may(&[], &[]) => Step::Wait(Wait::Majority),
        Some(peer) => Step::AddLearner(*peer),
        None => standing.shrink(),
    }
}

fn majority(count: usize) -> usize {
    count / 2 + 1
}

impl Standing {
    fn of(&self, role: Role) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.role == role)
    }

    /// Whether a change can be agreed on, and leaves a majority that is live.
    fn may(&self, promote: &[u64], remove: &[u64]) -> bool {
        let old: Vec<&Member> = self.of(Role::Voter).collect();
        let stays = |member: &&Member| match member.role {
            Role::Voter => !remove.contains(&member.id),
            Role::Learner => promote.contains(&member.id),
        };
        let new: Vec<&Member> = self.members.iter().filter(stays).collect();
        [old, new].iter().all(|voters| {
            let live = voters.iter().filter(|voter| voter.is_live()).count();
            live >= majority(voters.len())
        })
    }

    fn change(&self, promote: Vec<u64>, remove: Vec<u64>) -> Step {
        if self.may(&promote, &remove) { Step::Change { promote, remove } } else { Step::Wait(Wait::Majority) }
    }

    fn is_wanted(&self, member: &Member) -> bool {
        !member.is_gone() && self.target.contains(&member.peer)
    }

    /// Lets go of what has no future: learners that are gone or no longer wanted, and voters whose disk is lost. The
    /// latter never answer again, so a change without them needs no more votes than before.
    fn give_up(&self) -> Option<Step> {
        if let Some(learner) = self.of(Role::Learner).find(|learner| !self.is_wanted(learner)) {
            let step = Step::RemoveLearner(learner.id);
            return Some(if self.may(&[], &[]) { step } else { Step::Wait(Wait::Majority) });
        }
        let lost = self.of(Role::Voter).find(|voter| voter.condition == Condition::Lost)?;
        Some(self.change(Vec::new(), vec![lost.id]))
    }

    /// Lets a learner vote, in the place of a voter that should go if there are enough.
    fn promote(&self, learner: &Member) -> Step {
        let alone = || self.change(vec![learner.id], Vec::new());
        if self.of(Role::Voter).count() < self.target.len() {
            return alone();
        }
        match self.next_to_go() {
            None => alone(),
            Some(voter) if voter.id == self.leader => match self.successor() {
                Some(to) if to.condition == Condition::Well => Step::Transfer(to.id),
                // it becomes the successor itself
                _ => alone(),
            },
            Some(voter) => self.change(vec![learner.id], vec![voter.id]),
        }
    }

    /// Lets go of voters for which nobody has to stand in.
    fn shrink(&self) -> Step {
        let voters = self.of(Role::Voter).count();
        let gone: Vec<u64> = self.of(Role::Voter).filter(|voter| voter.is_gone()).map(|voter| voter.id).collect();
        // without a stand-in, one that is gone is kept as long as it does no harm: it may come back after all
        if majority(voters - gone.len()) < majority(voters) {
            return self.change(Vec::new(), gone);
        }
        let unwanted = self.of(Role::Voter).any(|voter| !voter.is_gone() && !self.is_wanted(voter));
        match self.next_to_go() {
            Some(_) if voters == 1 => Step::Wait(Wait::Successor),
            Some(voter) if voter.is_gone() && voters <= self.wanted && !unwanted => Step::Done,
            Some(voter) if voter.id == self.leader => match self.successor() {
                Some(to) if to.condition == Condition::Well => Step::Transfer(to.id),
                Some(to) => Step::Wait(Wait::CatchUp(to.id)),
                None => Step::Wait(Wait::Successor),
            },
            Some(voter) => self.change(Vec::new(), vec![voter.id]),
            None => Step::Done,
        }
    }

    /// The voter that should go first: one that is gone, then one that is silent, then one that is behind, the leader last.
    fn next_to_go(&self) -> Option<&Member> {
        let unwanted = self.of(Role::Voter).filter(|voter| !self.is_wanted(voter));
        unwanted.min_by_key(|voter| {
            let leads = voter.id == self.leader;
            (!voter.is_gone(), voter.is_live(), leads, voter.condition == Condition::Well, voter.id)
        })
    }

    /// The voter that should lead when the leader goes: one that stays, and has the log if any has.
    fn successor(&self) -> Option<&Member> {
        let stays = self.of(Role::Voter).filter(|voter| voter.id != self.leader && self.is_wanted(voter));
        let place = |peer: &PeerId| self.target.iter().position(|wanted| wanted == peer);
        stays.min_by_key(|voter| (voter.condition != Condition::Well, place(&voter.peer)))
    }
}

#[cfg(test)]
mod tests;
