//! One exchange with all other members at the same time.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::collective::Element;
use crate::error::{CommError, Result};
use crate::group::context::GroupContext;
use crate::group::operation::Operation;
use crate::transport::reduce::reduce;
use crate::transport::tcp::peer::{Broken, HEADER_BYTES, Incoming, Outgoing, Peer};
use crate::transport::tcp::plan::{Bytes, Plan, Reduction};
use crate::transport::tcp::ring::{REDUCE_BYTES, ring_bytes};

/// How long to wait for the sockets before looking at the health of the others.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// Carries out `plan`.
pub(super) fn exchange(
    context: &GroupContext,
    peers: &mut [Option<Peer>],
    operation: &Operation,
    plan: &Plan,
) -> Result<()> {
    let mut header = [0; HEADER_BYTES];
    for (place, word) in header.chunks_exact_mut(8).zip(operation.signature.encode()) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let reduction = plan.reduction.as_ref();
    let ring = reduction.map(|reduction| ring_bytes(peers.len(), reduction.result.len));
    for peer in peers.iter_mut().flatten() {
        peer.begin(ring);
    }
    let mut exchange = Exchange {
        context,
        operation,
        plan,
        header,
        ring: ring.unwrap_or(0),
        reduced: 0,
        verified: vec![false; peers.len()],
    };
    let mut last_progress = Instant::now();
    loop {
        let progressed = exchange.advance(peers)?;
        if exchange.is_complete(peers) {
            return Ok(());
        }
        if progressed {
            last_progress = Instant::now();
            continue;
        }
        exchange.wait_for_sockets(peers, last_progress)?;
    }
}

struct Exchange<'a> {
    context: &'a GroupContext,
    operation: &'a Operation,
    plan: &'a Plan,
    header: [u8; HEADER_BYTES],
    /// Bytes of every member's ring.
    ring: usize,
    /// Bytes of this member's result that are final.
    reduced: usize,
    /// Members whose signature was compared with this one's.
    verified: Vec<bool>,
}

impl Exchange<'_> {
    /// Does whatever can be done without waiting. True when anything was.
    fn advance(&mut self, peers: &mut [Option<Peer>]) -> Result<bool> {
        let mut progressed = false;
        let mut lost = None;
        // First to all, so that every member has this one's signature even if another's is wrong.
        for (member, peer) in connected(peers) {
            match peer.send(&self.outgoing(member)) {
                Ok(sent) => progressed |= sent,
                // What it sent before it went is still there to be read, and may say why.
                Err(broken) => lost = Some((member, broken)),
            }
        }
        for (member, peer) in connected(peers) {
            let incoming = self.incoming(member);
            let received = peer.receive(&incoming, self.reduced);
            // A signature that arrived together with the end of the connection still says what is wrong.
            self.verify(member, peer)?;
            progressed |= received.map_err(|broken| self.lost(member, &broken))?;
        }
        if let Some((member, broken)) = lost {
            return Err(self.lost(member, &broken));
        }
        if let Some(reduction) = &self.plan.reduction {
            progressed |= self.reduce_arrived(peers, reduction);
        }
        Ok(progressed)
    }

    fn verify(&mut self, member: usize, peer: &Peer) -> Result<()> {
        if let Some(theirs) = peer.signature().filter(|_| !self.verified[member]) {
            self.context
                .check_agreement(&self.operation.signature, member, theirs)?;
            self.verified[member] = true;
        }
        Ok(())
    }

    /// Reduces what has arrived from all members. True when there was something.
    fn reduce_arrived(&mut self, peers: &mut [Option<Peer>], reduction: &Reduction) -> bool {
        let element = self.operation.signature.element;
        let len = reduction.result.len;
        let mut arrived = len;
        for (member, peer) in connected(peers) {
            // Bytes of a member that does something else are not even looked at.
            let staged = match self.verified[member] {
                true => peer.staged(&self.incoming(member)),
                false => 0,
            };
            arrived = arrived.min(staged);
        }
        let end = arrived - arrived % element.size();
        let is_worth_it = end - self.reduced >= REDUCE_BYTES.min(self.ring / 2) || end == len;
        if end == self.reduced || !is_worth_it {
            return false;
        }
        while self.reduced < end {
            // Up to the end of the rings, which are all at the same position.
            let run = (end - self.reduced).min(self.ring - self.reduced % self.ring);
            self.reduce_run(peers, reduction, element, run);
            self.reduced += run;
        }
        true
    }

    fn reduce_run(
        &self,
        peers: &[Option<Peer>],
        reduction: &Reduction,
        element: Element,
        run: usize,
    ) {
        // SAFETY: `reduced + run` is at most the length of the result and of this member's own part.
        let (own, result) = unsafe {
            (
                reduction.own.add(self.reduced),
                reduction.result.start.add(self.reduced),
            )
        };
        let sources = peers.iter().map(|peer| match peer {
            Some(peer) => peer.stage_at(self.reduced),
            None => own,
        });
        // SAFETY: `run` bytes have arrived in every ring and do not reach over its end; they are whole elements, and both
        // rings and tensors are aligned for them. The result is the same memory as `own` or apart from all sources.
        unsafe {
            reduce(
                element,
                reduction.op,
                sources,
                [result],
                run / element.size(),
            );
        }
    }

    fn outgoing(&self, member: usize) -> Outgoing<'_> {
        let result = match &self.plan.reduction {
            Some(reduction) if self.plan.sends_result => reduction.result,
            _ => Bytes::NONE,
        };
        Outgoing {
            header: &self.header,
            direct: self.plan.sends[member],
            result,
            result_ready: self.reduced.min(result.len),
        }
    }

    fn incoming(&self, member: usize) -> Incoming {
        let reduction = self.plan.reduction.as_ref();
        Incoming {
            staged: reduction.map_or(0, |reduction| reduction.result.len),
            direct: self.plan.receives[member],
        }
    }

    fn is_complete(&self, peers: &mut [Option<Peer>]) -> bool {
        connected(peers).all(|(member, peer)| self.is_done_with(member, peer))
    }

    fn is_done_with(&self, member: usize, peer: &Peer) -> bool {
        peer.has_sent(&self.outgoing(member)) && peer.has_received(&self.incoming(member))
    }

    /// Sleeps until a socket is ready, or fails when that is not to be expected any more.
    fn wait_for_sockets(&self, peers: &mut [Option<Peer>], last_progress: Instant) -> Result<()> {
        let mut waiting = Vec::with_capacity(peers.len());
        // Only sockets that are still needed: a member that is done may leave.
        for (member, peer) in connected(peers) {
            let mut wanted = PollFlags::empty();
            if peer.can_send(&self.outgoing(member)) {
                wanted |= PollFlags::OUT;
            }
            if peer.can_receive(&self.incoming(member), self.reduced) {
                wanted |= PollFlags::IN;
            }
            if !wanted.is_empty() {
                waiting.push(PollFd::new(&peer.socket, wanted));
            }
        }
        let timeout = Timespec::try_from(LOOK_AROUND).ok();
        // An interrupted poll is one that found nothing.
        if poll(&mut waiting, timeout.as_ref()).unwrap_or(0) > 0 {
            return Ok(());
        }
        drop(waiting);
        let mut unfinished: Vec<usize> = Vec::new();
        let mut silent: Vec<usize> = Vec::new();
        for (member, peer) in connected(peers) {
            if !self.is_done_with(member, peer) {
                unfinished.push(self.context.ranks[member]);
            }
            if peer.signature().is_none() {
                silent.push(self.context.ranks[member]);
            }
        }
        self.context
            .check_waiting(&unfinished, &self.operation.signature)?;
        if last_progress.elapsed() < self.context.timeout {
            return Ok(());
        }
        Err(CommError::Timeout {
            // A member that has not even begun is more likely the cause than one that waits like this one.
            ranks: if silent.is_empty() {
                unfinished
            } else {
                silent
            },
            timeout: self.context.timeout,
            site: self.context.site(&self.operation.signature),
        })
    }

    fn lost(&self, member: usize, broken: &Broken) -> CommError {
        let signature = &self.operation.signature;
        match broken {
            Broken::Left => self.context.peer_left(member, signature),
            Broken::Silent => CommError::Timeout {
                ranks: vec![self.context.ranks[member]],
                timeout: self.context.timeout,
                site: self.context.site(signature),
            },
        }
    }
}

/// The other members, with their places in the group.
fn connected(peers: &mut [Option<Peer>]) -> impl Iterator<Item = (usize, &mut Peer)> {
    let places = peers.iter_mut().enumerate();
    places.filter_map(|(member, peer)| Some((member, peer.as_mut()?)))
}
