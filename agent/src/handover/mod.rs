//! Handing a running tree over to another machine before its memory has been moved: `lazy-direct` and `lazy-hybrid`.
//!
//! The tree is stopped where it is ([`Handover`]), everything but its memory goes into the store, the target rebuilds it and
//! lets it run, and reads its pages out of the stopped tree. Two trees exist meanwhile, and the rules that keep at most one of
//! them running, and at least one of them restorable, are these:
//!
//! 1. **Stopped means stopped.** CRIU is gone from the tree before anybody hears of the handover, and leaves it stopped by
//!    `SIGSTOP`. No death of an agent lets it go on. If somebody else does, the source stops it again, and nothing more is read
//!    from it: its memory may have changed since. It goes on where it is, if rule 2 allows that.
//! 2. **One runner a generation** ([`Fence`](crate::fence::Fence)). The target's copy runs only after the target has created
//!    `runners/G`, while all tasks are rebuilt and none has run. The stopped tree goes on only after the source has created the
//!    very same object, or the one after it when the runner of G has said that nothing of it runs.
//! 3. **The stopped tree is ended only when nobody needs it any more**: the target has said that its copy ran (`runners/G.ran`,
//!    once CRIU has let go of it), and that has every page or has ended; or it runs and the checkpoint made of the stopped tree is committed.
//! 4. **Not knowing means waiting.** While the store cannot be reached, the stopped tree neither goes on nor is ended, and the
//!    target's copy does not begin.
//!
//! | who fails | before the target has claimed G | after |
//! |---|---|---|
//! | source agent | CRIU lets the tree run on, or it is stopped and the next start of the agent finds it ([`Agent::handovers`]), serves it, or takes it back | target waits for pages; the next start of the agent serves them |
//! | CRIU at the source | it lets the tree run on | gone long ago |
//! | target agent, CRIU there | nothing runs there; the source takes the tree back | what was rebuilt is killed, G is said to have ended, the source takes it back; once it runs, its page server is a process of its own |
//! | page server at the target | the restore fails | replaced by its guardian |
//! | link | the source takes the tree back when nobody has claimed G in time | target waits for pages, or takes them from the checkpoint once that is committed |
//! | target machine | the source takes the tree back | the source keeps the stopped tree until somebody who knows says that G has ended; or its checkpoint is restored |
//! | source machine | the last checkpoint can be restored | pages that came are not enough: the target's copy is ended when its page server's patience is over, and the last checkpoint can be restored; none of this if the checkpoint of the stopped tree is committed |
//!
//! [`Agent::handovers`]: crate::Agent::handovers

mod describe;
mod memory;
mod remote;
mod saved;
mod source;
mod standstill;

pub use self::{
    memory::StoppedMemory,
    remote::{HandedOver, Remote, origin, pack},
    source::{Handover, HandoverRequest},
};
