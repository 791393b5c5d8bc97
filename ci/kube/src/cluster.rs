//! A cluster as tests use it: clients with different rights, namespaces of their own, `kubectl`.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
    thread,
};

use k8s_openapi::{
    api::{
        authentication::v1::TokenRequest,
        core::v1::{Namespace, ServiceAccount},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::runtime;

use crate::{
    definitions,
    error::Error,
    stack::{Options, Stack},
};

/// A cluster to test against: a stack of our own, or the one that `MIGRATION_KUBECONFIG` names.
pub struct Cluster {
    kubeconfig: PathBuf,
    stack: Option<Stack>,
}

impl Cluster {
    /// The one that all tests of this binary share: the API server alone. Blocks for some seconds the first time.
    ///
    /// # Errors
    /// When it did not come up; the same for everybody who asks.
    pub fn shared() -> Result<&'static Self, &'static Error> {
        static SHARED: OnceLock<Result<Cluster, Error>> = OnceLock::new();
        SHARED.get_or_init(|| Self::blocking(Options::default())).as_ref()
    }

    /// As [`Cluster::shared`], with controllers and scheduler: another one.
    ///
    /// # Errors
    /// As [`Cluster::shared`].
    pub fn shared_with_controllers() -> Result<&'static Self, &'static Error> {
        static SHARED: OnceLock<Result<Cluster, Error>> = OnceLock::new();
        SHARED.get_or_init(|| Self::blocking(Options { controllers: true, ..Options::default() })).as_ref()
    }

    /// Starts a stack that belongs to the caller alone.
    ///
    /// # Errors
    /// When programs are missing or do not come up.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let stack = Stack::start(options).await?;
        Ok(Self { kubeconfig: stack.kubeconfig(), stack: Some(stack) })
    }

    /// On a thread and runtime of its own, since the caller's may be of any kind.
    fn blocking(options: Options) -> Result<Self, Error> {
        if let Some(kubeconfig) = env::var_os("MIGRATION_KUBECONFIG") {
            return Ok(Self { kubeconfig: kubeconfig.into(), stack: None });
        }
        let start = || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(Error::io("make a runtime"))?.block_on(Self::start(options))
        };
        thread::scope(|scope| match scope.spawn(start).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// The kubeconfig of somebody who may do everything.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A client that may do everything. It belongs to the runtime it was made in, like any client.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn client(&self) -> Result<Client, Error> {
        client(&self.kubeconfig).await
    }

    /// A client that is this service account, with a token that the API server has issued. The account is made if need be.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn service_account(&self, namespace: &str, name: &str) -> Result<Client, Error> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let mut account = ServiceAccount::default();
        account.metadata.name = Some(name.to_owned());
        match accounts.create(&PostParams::default(), &account).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            other => drop(other.map_err(Error::kube("create a service account"))?),
        }
        let request =
            accounts.create_token_request(name, &PostParams::default(), &TokenRequest::default()).await;
        let status = request.map_err(Error::kube("get a token"))?.status;
        let mut config = config(&self.kubeconfig).await?;
        config.auth_info = serde_json::from_value(json!({"token": status.map(|status| status.token)}))
            .map_err(|error| Error::kube("use a token")(kube::Error::SerdeError(error)))?;
        Client::try_from(config).map_err(Error::kube("make a client"))
    }

    /// Makes a namespace that nobody else has; its name begins with `prefix`. In a stack of ours nobody has to remove it.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn namespace(&self, prefix: &str) -> Result<String, Error> {
        let namespaces: Api<Namespace> = Api::all(self.client().await?);
        let mut namespace = Namespace::default();
        namespace.metadata.generate_name = Some(format!("{prefix}-"));
        let made = namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .map_err(Error::kube("create a namespace"))?;
        Ok(made.metadata.name.unwrap_or_default())
    }

    /// Applies a definition of resources and waits until they can be used.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn install(&self, definition: &CustomResourceDefinition) -> Result<(), Error> {
        definitions::install(&self.client().await?, definition).await
    }

    /// Runs `kubectl` as somebody who may do everything; what it prints and how it ends is the caller's to judge.
    ///
    /// # Errors
    /// When there is no `kubectl`.
    pub fn kubectl<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<Output, Error> {
        let mut command = Command::new("kubectl");
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig).env_remove("KUBECTL_EXTERNAL_DIFF");
        if let Some(stack) = &self.stack {
            // Next to the kubeconfig, so that it goes when that goes.
            command.env("KUBECACHEDIR", stack.kubeconfig().with_file_name("kubectl-cache"));
        }
        command.output().map_err(Error::io("run kubectl (ci/build-kube puts one into $MIGRATION_KUBE/bin)"))
    }

    /// Kills the API server. What clients were doing fails, and connections are refused from now on.
    ///
    /// # Errors
    /// When the cluster is not ours.
    pub fn stop_api_server(&self) -> Result<(), Error> {
        self.stack.as_ref().ok_or(Error::NotOurs("stop the API server"))?.stop_api_server()
    }

    /// Starts the API server after [`Cluster::stop_api_server`], with the same address and data, and waits until it is ready.
    ///
    /// # Errors
    /// When the cluster is not ours, or it does not come up.
    pub async fn start_api_server(&self) -> Result<(), Error> {
        self.stack.as_ref().ok_or(Error::NotOurs("start the API server"))?.start_api_server().await
    }
}

async fn config(kubeconfig: &Path) -> Result<Config, Error> {
    Ok(Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default())
        .await?)
}

/// A client of whoever the kubeconfig names.
///
/// # Errors
/// When it cannot be used.
pub async fn client(kubeconfig: &Path) -> Result<Client, Error> {
    Client::try_from(config(kubeconfig).await?).map_err(Error::kube("make a client"))
}
