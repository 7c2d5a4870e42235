//! Sending probes again where other jobs trace on the same router.
//!
//! The kernel tells every listener of every traced packet, and every traced packet passes the tables of all
//! traces. Whoever traces beside others, because it has waited long enough for its turn or because they have, may
//! find its buffer full of what they caused, however few probes it sends itself. An ordinary user's buffer holds
//! some 280 events.

use std::time::Instant;

use super::{ExplainError, ExplainQuestion, SendAgain, trace_spec};
use crate::{
    firewall::nft::trace::{Drained, Tracer, turn::TraceTurn},
    netns::visit,
};

/// One job's trace on one router.
pub(super) struct Tracing<'t, 's> {
    pub(super) tracer: &'t mut Tracer,
    send: &'t mut SendAgain<'s>,
    question: &'t ExplainQuestion<'t>,
    turn: Option<TraceTurn>,
    /// Until when probes are sent once more because of others, once these were in the way. Waiting for the turn
    /// does not count.
    until: Option<Instant>,
}

impl<'t, 's> Tracing<'t, 's> {
    /// What `tracer` follows on the router of `question`, in this job's turn if it has it.
    pub(super) fn new(
        question: &'t ExplainQuestion<'t>,
        tracer: &'t mut Tracer,
        send: &'t mut SendAgain<'s>,
        turn: Option<TraceTurn>,
    ) -> Self {
        Self {
            tracer,
            send,
            question,
            turn,
            until: None,
        }
    }

    /// Sends probes again, and reads what happened to them.
    pub(super) fn send(&mut self, batch: &[u32]) -> Result<Drained, ExplainError> {
        (self.send)(batch).map_err(ExplainError::Send)?;
        Ok(self.tracer.drain()?)
    }

    /// Whether probes whose events were lost among those of other jobs are to be sent once more, as many at a
    /// time as before. Waits for the turn where this job went on without.
    pub(super) fn gives_way(&mut self, alone: bool) -> Result<bool, ExplainError> {
        let until = self.until();
        let began = Instant::now();
        if self.turn.is_some() || began >= until {
            return Ok(self.insists(alone));
        }
        // Its tables would be in the way of whoever has the turn, and what that causes is not for this job.
        self.tracer.suspend()?;
        let patience = self.question.patience;
        let turns = visit(&[self.question.netns], |_| TraceTurn::wait_here(patience))?;
        self.turn = turns.into_iter().next().flatten();
        // Whoever has it is at work, or nothing would have been in the way.
        self.until = Some(until + began.elapsed());
        self.tracer.resume(&trace_spec(self.question))?;
        Ok(true)
    }

    /// The same without a wait: of a probe that was alone, for as long as the question's patience. Of several,
    /// fewer at a time have better chances.
    pub(super) fn insists(&mut self, alone: bool) -> bool {
        alone && Instant::now() < self.until()
    }

    fn until(&mut self) -> Instant {
        let patience = self.question.patience;
        *self.until.get_or_insert_with(|| Instant::now() + patience)
    }

    /// Ends the turn; probes that are sent later are few.
    pub(super) fn end_turn(self) -> (&'t mut Tracer, &'t mut SendAgain<'s>) {
        (self.tracer, self.send)
    }
}
