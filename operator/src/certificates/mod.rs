//! Certificates of the operator, its webhook and the agents: who issues them, what they say, how long they hold.
//!
//! What always holds:
//!
//! - One authority per installation issues all of them. Its keys are in one Secret in the operator's namespace and nowhere else;
//!   agents get a certificate and a key of their own, and the authorities to trust.
//! - A certificate of an agent names one application, `migration://cluster/namespace/app`, and is good for no other: an agent
//!   grants its holder that application alone, and the operator talks to an agent only under the name of the application
//!   it is looking for ([`agent_server_name`]).
//! - An authority is trusted for [`SETTLE`] before it issues anything, and until it expires after it has stopped, so that nobody
//!   ever meets a certificate whose authority it does not know.
//! - What is written to the Secret is written over what was read from it, never over what another operator has written meanwhile.
//!
//! It fails by saying which Secret cannot be used. The Secret is never replaced because it cannot be understood: that would make
//! every agent unreachable. Deleting it does that, on purpose: all certificates are then made anew, and pods have to be too.

mod authority;
mod identity;
mod secret;

pub use authority::{Authorities, Issued, SETTLE};
pub use identity::{Identity, OPERATOR_NAME, agent_name, agent_server_name};
pub use secret::{AUTHORITY_SECRET, agent_data, load, renew};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A key or certificate could not be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// What the Secret holds is not what was written to it.
    #[error(
        "the Secret {namespace}/{AUTHORITY_SECRET} cannot be used: {why}; restore it, or delete it to have all certificates made anew"
    )]
    Unusable {
        /// Where it is.
        namespace: String,
        /// What is wrong with it.
        why: String,
    },
    /// The API server did not answer, or refused.
    #[error("cannot {what} the Secret {namespace}/{AUTHORITY_SECRET}")]
    Kube {
        /// What was tried.
        what: &'static str,
        /// Where it is.
        namespace: String,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// The clock stands before 1970 or after 9999.
    #[error("the clock of this machine stands at an impossible time")]
    Clock,
}
