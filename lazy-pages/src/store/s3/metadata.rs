//! Credentials that the machine itself hands out: to a container, or to a whole instance.
//!
//! rusoto's own providers know neither session tokens for the instance's service (IMDSv2, the only kind new instances
//! answer) nor token files for the container's (EKS pod identity). Everything here has a time limit; a machine without
//! such a service costs one second.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use hyper::{Body, Client, Method, Request, header::AUTHORIZATION};
use rusoto_credential::AwsCredentials;

/// These services answer in milliseconds, or there is none.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// Where every instance finds its service.
pub(super) const INSTANCE: &str = "http://169.254.169.254";
/// Where a container finds its service when it is only told a path.
const CONTAINER: &str = "http://169.254.170.2";
/// Credentials are a few hundred bytes, session tokens a few thousand.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Credentials of the instance's role, from the service at `address`.
pub(super) async fn instance(address: &str) -> Option<AwsCredentials> {
    let token = Request::builder()
        .method(Method::PUT)
        .uri(format!("{address}/latest/api/token"))
        .header("x-aws-ec2-metadata-token-ttl-seconds", "21600");
    // Without a token, old services still answer; from inside a container, the token's answer may not get through.
    let token = ask(token).await;
    let get = |path: &str| {
        let request =
            Request::builder().uri(format!("{address}/latest/meta-data/iam/security-credentials/{path}"));
        match &token {
            Some(token) => request.header("x-aws-ec2-metadata-token", &**token),
            None => request,
        }
    };
    let roles = ask(get("")).await?;
    let role = std::str::from_utf8(&roles).ok()?.lines().next()?.trim().to_owned();
    serde_json::from_slice(&ask(get(&role)).await?).ok()
}

/// Credentials of the container, if variables say where they are handed out.
///
/// # Errors
/// When the file that holds the service's password cannot be read.
pub(super) async fn container(
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<AwsCredentials>, String> {
    let path = variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").map(|path| format!("{CONTAINER}{path}"));
    let Some(uri) = path.or_else(|| variable("AWS_CONTAINER_CREDENTIALS_FULL_URI")) else { return Ok(None) };
    let mut request = Request::builder().uri(uri);
    let password = match variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        Some(file) => Some(
            tokio::fs::read_to_string(&file)
                .await
                .map_err(|error| format!("{file} cannot be read: {error}"))?,
        ),
        None => variable("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
    };
    if let Some(password) = password {
        request = request.header(AUTHORIZATION, password.trim());
    }
    Ok(ask(request).await.and_then(|answer| serde_json::from_slice(&answer).ok()))
}

/// The body of a good answer that comes in time.
async fn ask(request: hyper::http::request::Builder) -> Option<Bytes> {
    let request = request.body(Body::empty()).ok()?;
    let answer = async {
        let response = Client::new().request(request).await.ok()?;
        if !response.status().is_success() {
            return None;
        }
        let mut body = Vec::new();
        let mut pieces = response.into_body();
        while let Some(piece) = pieces.next().await {
            body.extend_from_slice(&piece.ok()?);
            if body.len() > LONGEST_ANSWER {
                return None;
            }
        }
        Some(Bytes::from(body))
    };
    tokio::time::timeout(ANSWER_LIMIT, answer).await.ok()?
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::TcpListener,
    };

    use super::*;

    const KEYS: &str = r#"{"Code":"Success","AccessKeyId":"id","SecretAccessKey":"secret","Token":"token",
        "Expiration":"2030-01-02T03:04:05Z"}"#;

    /// Answers requests one a connection, by what `answer` makes of the head; ends when it gives nothing.
    fn service(answer: impl Fn(&str) -> Option<&'static str> + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.expect("a connection");
                let lines = BufReader::new(&socket).lines().map_while(Result::ok);
                let head = lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
                let Some(body) = answer(&head.to_ascii_lowercase()) else { break };
                let status = if body.is_empty() { "401 Unauthorized" } else { "200 OK" };
                let length = body.len();
                let _ = write!(
                    socket,
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
            }
        });
        address
    }

    #[tokio::test]
    async fn an_instance_gives_its_role_to_those_with_a_session_token() {
        let address = service(|head| {
            let known = head.contains("x-aws-ec2-metadata-token: session");
            Some(match head.split(' ').nth(1).unwrap_or_default() {
                "/latest/api/token" if head.starts_with("put") => "session",
                "/latest/meta-data/iam/security-credentials/" if known => "my-role\n",
                "/latest/meta-data/iam/security-credentials/my-role" if known => KEYS,
                _ => "",
            })
        });
        let credentials = instance(&address).await.expect("credentials");
        assert_eq!(credentials.aws_access_key_id(), "id");
        assert_eq!(credentials.aws_secret_access_key(), "secret");
        assert_eq!(credentials.token().as_deref(), Some("token"));
        assert_eq!(credentials.expires_at().expect("expires").timestamp(), 1_893_553_445);
    }

    #[tokio::test]
    async fn an_old_instance_gives_its_role_to_anybody() {
        let address = service(|head| {
            Some(match head.split(' ').nth(1).unwrap_or_default() {
                "/latest/meta-data/iam/security-credentials/" => "my-role",
                "/latest/meta-data/iam/security-credentials/my-role" => KEYS,
                _ => "",
            })
        });
        assert_eq!(instance(&address).await.expect("credentials").aws_access_key_id(), "id");
    }

    #[tokio::test]
    async fn a_container_shows_its_password() {
        let address = service(|head| Some(if head.contains("authorization: pass-word") { KEYS } else { "" }));
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "pass-word\n").expect("written");
        let file = file.path().display().to_string();
        let with = |name: &'static str, value: String| {
            let address = address.clone();
            move |asked: &str| match asked {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI" => Some(format!("{address}/v1/credentials")),
                _ if asked == name => Some(value.clone()),
                _ => None,
            }
        };
        for variables in [
            with("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file),
            with("AWS_CONTAINER_AUTHORIZATION_TOKEN", "pass-word".to_owned()),
        ] {
            let credentials = container(variables).await.expect("readable").expect("credentials");
            assert_eq!(credentials.aws_access_key_id(), "id");
        }
        assert!(container(with("none", String::new())).await.expect("readable").is_none());
        assert!(container(|_: &str| None).await.expect("nothing to read").is_none());
    }

    #[tokio::test]
    async fn a_machine_without_a_service_fails_fast() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let silent = format!("http://{}", listener.local_addr().expect("bound"));
        let started = std::time::Instant::now();
        assert!(instance(&silent).await.is_none());
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    }
}
