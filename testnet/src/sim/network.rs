//! The links between machines: how long a message takes, and whether it arrives.

use super::around::Machine;
use super::faults::{Kind, Plan};
use super::queue::Micros;
use super::rng::Rng;

/// Time on the wire inside a site, at least and at most.
const NEAR: (Micros, Micros) = (100, 400);
/// Between sites, at least and at most, drawn for each pair of sites.
const FAR: (Micros, Micros) = (1_000, 30_000);
/// Sites that peers are spread over.
pub const SITES: usize = 3;
/// How late a late message may be: several elections.
const LATE: Micros = 1_500_000;
/// A message to oneself.
const SELF: Micros = 5;

/// Machines that can't be reached from others, for a while.
#[derive(Debug, Clone)]
pub struct Cut {
    /// Names it.
    pub number: u64,
    /// What these send …
    pub from: Vec<Machine>,
    /// … to these does not arrive.
    pub to: Vec<Machine>,
    /// Nor the other way.
    pub both: bool,
}

/// The links.
pub struct Network {
    machines: usize,
    sites: Vec<usize>,
    far: [[Micros; SITES]; SITES],
    cuts: Vec<Cut>,
    /// How many cuts are between two machines.
    blocked: Vec<u16>,
    /// When the last message between two machines arrives: what follows it on the same stream comes behind it.
    last: Vec<Micros>,
    rng: Rng,
    loss: u64,
    duplicate: u64,
    late: u64,
}

/// When the copies of a message arrive: none when it is lost, two when it comes twice.
pub type Arrivals = [Option<Micros>; 2];

impl Network {
    /// The links between so many machines.
    pub fn new(machines: usize, plan: &Plan, rng: Rng) -> Self {
        let mut sites_rng = rng.fork(1);
        let sites = (0..machines).map(|machine| machine % SITES).collect();
        let mut far = [[0; SITES]; SITES];
        for row in &mut far {
            for delay in row.iter_mut() {
                *delay = sites_rng.between(FAR.0, FAR.1);
            }
        }
        Self {
            machines,
            sites,
            far,
            cuts: Vec::new(),
            blocked: vec![0; machines * machines],
            last: vec![0; machines * machines],
            rng,
            loss: plan.strength(Kind::Loss),
            duplicate: plan.strength(Kind::Duplicate),
            late: plan.strength(Kind::Delay),
        }
    }

    /// The site of a machine.
    pub fn site(&self, machine: Machine) -> usize {
        self.sites.get(machine).copied().unwrap_or_default()
    }

    /// Whether a message gets from one machine to another at all.
    pub fn reaches(&self, from: Machine, to: Machine) -> bool {
        from == to || self.blocked.get(from * self.machines + to).is_none_or(|cuts| *cuts == 0)
    }

    /// Nothing is lost, doubled or late any more, and no cut is left.
    pub fn heal(&mut self) {
        (self.loss, self.duplicate, self.late) = (0, 0, 0);
        self.cuts.clear();
        self.blocked.fill(0);
    }

    /// Cuts machines off.
    pub fn cut(&mut self, cut: Cut) {
        self.cuts.push(cut);
        self.count();
    }

    /// Ends a cut.
    pub fn mend(&mut self, number: u64) {
        self.cuts.retain(|cut| cut.number != number);
        self.count();
    }

    /// Whether anything is cut.
    pub fn is_cut(&self) -> bool {
        !self.cuts.is_empty()
    }

    fn count(&mut self) {
        self.blocked.fill(0);
        for cut in &self.cuts {
            for from in &cut.from {
                for to in &cut.to {
                    let ways = [Some((*from, *to)), cut.both.then_some((*to, *from))];
                    for (from, to) in ways.into_iter().flatten() {
                        if let Some(cuts) = self.blocked.get_mut(from * self.machines + to) {
                            *cuts += 1;
                        }
                    }
                }
            }
        }
    }

    fn delay(&mut self, from: Machine, to: Machine) -> Micros {
        if from == to {
            return SELF;
        }
        let (one, other) = (self.site(from), self.site(to));
        let near = self.rng.between(NEAR.0, NEAR.1);
        if one == other {
            return near;
        }
        let far = self.far.get(one.min(other)).and_then(|row| row.get(one.max(other))).copied().unwrap_or(FAR.0);
        // a tenth of jitter
        far + near + self.rng.below(far / 10 + 1)
    }

    /// When a message that is sent now arrives. Messages between two machines keep their order, unless one is late or comes
    /// twice.
    pub fn send(&mut self, from: Machine, to: Machine, now: Micros) -> Arrivals {
        if from == to {
            return [Some(now + SELF), None];
        }
        if !self.reaches(from, to) || (self.loss > 0 && self.rng.chance(self.loss)) {
            return [None, None];
        }
        let mut at = now + self.delay(from, to);
        if self.late > 0 && self.rng.chance(self.late) {
            at += self.rng.below(LATE);
        } else if let Some(last) = self.last.get_mut(from * self.machines + to) {
            at = at.max(*last);
            *last = at;
        }
        let twice = self.duplicate > 0 && self.rng.chance(self.duplicate);
        [Some(at), twice.then(|| now + self.delay(from, to) + self.rng.below(LATE))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_works_one_way_or_both_and_ends() {
        let mut network = Network::new(4, &Plan::default(), Rng::new(1));
        network.cut(Cut { number: 1, from: vec![0], to: vec![1, 2], both: false });
        network.cut(Cut { number: 2, from: vec![0], to: vec![1], both: true });
        let ways = |network: &Network| [(0, 1), (1, 0), (0, 2), (2, 0), (0, 3)].map(|(a, b)| network.reaches(a, b));
        assert_eq!(ways(&network), [false, false, false, true, true]);
        assert_eq!(network.send(0, 1, 0), [None, None]);
        network.mend(2);
        assert_eq!(ways(&network), [false, true, false, true, true]);
        network.mend(1);
        assert_eq!(ways(&network), [true; 5]);
        assert!(matches!(network.send(0, 1, 0), [Some(_), None]));
    }

    #[test]
    fn order_is_kept_but_for_what_is_late() {
        let mut network = Network::new(4, &Plan::default(), Rng::new(3));
        let arrivals = |network: &mut Network| -> Vec<Micros> {
            (0..100).filter_map(|now| network.send(0, 1, now * 10)[0]).collect()
        };
        assert!(arrivals(&mut network).is_sorted());
        let mut network = Network::new(4, &Plan::default().with(Kind::Delay), Rng::new(3));
        assert!(!arrivals(&mut network).is_sorted());
    }

    #[test]
    fn loss_and_duplication_happen_about_as_often_as_planned() {
        let plan = Plan::default().with(Kind::Loss).with(Kind::Duplicate);
        let mut network = Network::new(2, &plan, Rng::new(5));
        let all: Vec<Arrivals> = (0..2000).map(|_| network.send(0, 1, 0)).collect();
        let lost = all.iter().filter(|arrivals| arrivals[0].is_none()).count();
        let twice = all.iter().filter(|arrivals| arrivals[1].is_some()).count();
        assert!((200..400).contains(&lost), "{lost}");
        assert!((240..440).contains(&twice), "{twice}");
    }
}
