//! Streams to and from containers, over the WebSocket protocols that Kubernetes' clients speak.

pub(crate) mod forward;
mod keys;
mod session;
mod socket;
pub(crate) mod terminal;
mod tls;

use berth_cri::berth::v1::{AttachToPodRequest, ExecInPodRequest};

use crate::args::{Attach, Exec};
use crate::client::Client;
use crate::error::Error;

use self::keys::Keys;
use self::session::{Ended, Session};
use self::terminal::Terminal;

/// The command's exit code.
pub(crate) async fn exec(client: Client, args: Exec) -> Result<u8, Error> {
    if args.tty && !terminal::is_terminal() {
        return Err(Error::Usage("--tty: standard input is no terminal".to_owned()));
    }
    let request = ExecInPodRequest {
        pod: Some(args.pod.reference()),
        container: args.container.container,
        command: args.command,
        stdin: args.stdin,
        tty: args.tty,
    };
    let url = client.pods().exec(request).await.map_err(client.failed())?.into_inner();
    let session = Session { url, stdin: args.stdin, tty: args.tty, detach: None };
    match session.run().await? {
        Ended::Exited(code) => Ok(code),
        Ended::Detached => Ok(0),
    }
}

pub(crate) async fn attach(client: Client, args: Attach) -> Result<u8, Error> {
    let request = AttachToPodRequest {
        pod: Some(args.pod.reference()),
        container: args.container.container,
        stdin: args.stdin,
    };
    attach_to(&client, request, &args.detach.detach_keys).await
}

/// Until the container ends or the keys are pressed.
pub(crate) async fn attach_to(
    client: &Client,
    request: AttachToPodRequest,
    detach_keys: &str,
) -> Result<u8, Error> {
    let keys = Keys::parse(detach_keys)?;
    let stdin = request.stdin;
    let url = client.pods().attach(request).await.map_err(client.failed())?.into_inner();
    // Without a terminal at this end the container's is not for keys.
    let tty = url.tty && terminal::is_terminal();
    let session = Session { url, stdin, tty, detach: tty.then_some(keys) };
    match session.run().await? {
        Ended::Exited(code) => Ok(code),
        Ended::Detached => {
            eprintln!("\r\ndetached: the container runs on");
            Ok(0)
        }
    }
}
