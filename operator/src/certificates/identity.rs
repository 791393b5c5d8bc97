//! Who a certificate is for, and the names in it.

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, SanType, string::Ia5String,
};

/// The operator's name. Agents are started with it as the one that may do anything.
pub const OPERATOR_NAME: &str = "operator.migration.internal";

/// Who a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The operator, as a client of agents.
    Operator,
    /// The agent of one application: a server for the operator, and a client of the agent that the application leaves.
    Agent {
        /// The cluster.
        cluster: String,
        /// The application's namespace.
        namespace: String,
        /// The application.
        app: String,
    },
    /// The webhook's server.
    Server {
        /// The names and addresses that clients connect to.
        names: Vec<String>,
    },
}

/// What an agent's certificate names: the application, as agents know it.
pub fn agent_name(cluster: &str, namespace: &str, app: &str) -> String {
    format!("migration://{cluster}/{namespace}/{app}")
}

/// The name under which the operator expects an application's agent to be a server, whatever its address.
pub fn agent_server_name(namespace: &str, app: &str) -> String {
    format!("{app}.{namespace}.agent.migration.internal")
}

impl Identity {
    /// What the certificate says beside its dates.
    pub(super) fn params(&self) -> Result<CertificateParams, rcgen::Error> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let (common, names, uri, usages) = match self {
            Self::Operator => ("operator".to_owned(), vec![OPERATOR_NAME.to_owned()], None, vec![ClientAuth]),
            Self::Agent { cluster, namespace, app } => (
                "agent".to_owned(),
                vec![agent_server_name(namespace, app)],
                Some(agent_name(cluster, namespace, app)),
                vec![ServerAuth, ClientAuth],
            ),
            Self::Server { names } => ("webhook".to_owned(), names.clone(), None, vec![ServerAuth]),
        };
        let mut params = CertificateParams::new(names)?;
        if let Some(uri) = uri {
            params.subject_alt_names.push(SanType::URI(Ia5String::try_from(uri)?));
        }
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        params.extended_key_usages = usages;
        Ok(params)
    }
}
