//! `berth image`.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use berth_cri::berth::v1::{
    ExplainRequest, ExplainResponse, ExplainedEndpoint, LoadRequest, PruneRequest, PullRequest, SaveRequest,
    SaveResponse, explained_endpoint::Answer, pull_response::What,
};
use berth_cri::runtime::v1::{ImageSpec, ImageStatusRequest, ListImagesRequest, RemoveImageRequest};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::args::{Format, Image, Output, Pull};
use crate::client::Client;
use crate::error::Error;
use crate::output::{bytes, print, table};
use crate::run::progress::{Screen, pull_lines};

pub(crate) async fn image(client: Client, command: Image) -> Result<u8, Error> {
    match command {
        Image::Pull(args) => pull(client, args).await,
        Image::Explain(args) => explain(client, args).await,
        Image::Ls(output) => list(client, output).await,
        Image::Rm { images } => remove(client, images).await,
        Image::Load { input, name, output } => load(client, &input, name, output.output).await,
        Image::Save { output, images } => save(client, &output, images).await,
        Image::Prune { dry_run, output } => prune(client, dry_run, output.output).await,
    }
}

async fn pull(client: Client, args: Pull) -> Result<u8, Error> {
    let (username, password) = credentials(args.creds_stdin)?;
    let request = PullRequest { reference: args.image.clone(), username, password };
    let mut answers = client.images().pull(request).await.map_err(client.failed())?.into_inner();
    let format = args.output.output;
    let on_screen = std::io::stdout().is_terminal() && format == Format::Table;
    let mut screen = on_screen.then(Screen::default);
    while let Some(answer) = answers.message().await.map_err(client.failed())? {
        match (answer.what, &mut screen) {
            (Some(What::Progress(pull)), Some(screen)) => screen.draw(pull_lines(&pull).into_iter()),
            (Some(What::Id(id)), _) if format != Format::Table => {
                print(&json!({ "name": args.image, "id": id }), format)?;
            }
            (Some(What::Id(id)), _) => println!("{} is {id}", args.image),
            (Some(What::Progress(_)) | None, _) => {}
        }
    }
    Ok(0)
}

/// From standard input, when that is where they are.
fn credentials(stdin: bool) -> Result<(String, String), Error> {
    if !stdin {
        return Ok(Default::default());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(Error::file("read", "standard input"))?;
    match text.trim_end_matches(['\r', '\n']).split_once(':') {
        Some((user, password)) => Ok((user.to_owned(), password.to_owned())),
        None => Err(Error::Usage("--creds-stdin: standard input must be USER:PASSWORD".to_owned())),
    }
}

async fn explain(client: Client, args: Pull) -> Result<u8, Error> {
    let (username, password) = credentials(args.creds_stdin)?;
    let request = ExplainRequest { reference: args.image, username, password };
    let explained = client.images().explain(request).await.map_err(client.failed())?.into_inner();
    if args.output.output != Format::Table {
        print(&explanation(&explained), args.output.output)?;
        return Ok(0);
    }
    println!("{}", explained.reference);
    match explained.config_file.as_str() {
        "" => println!("from {} itself: no hosts.toml speaks for it", explained.host),
        file => println!("as {file} has it"),
    }
    if !explained.present.is_empty() {
        println!("here under that name: {}", explained.present);
    }
    let rows: Vec<_> = explained.endpoints.iter().map(endpoint_row).collect();
    print!("\n{}", table(&["ENDPOINT", "IS", "MAY", "TLS", "SHOWN", "ANSWER"], &rows));
    Ok(0)
}

fn endpoint_row(endpoint: &ExplainedEndpoint) -> Vec<String> {
    let may = [("resolve", endpoint.resolve), ("pull", endpoint.pull)];
    let may = may.into_iter().filter(|(_, may)| *may).map(|(what, _)| what);
    let mut tls = match (endpoint.url.starts_with("https:"), endpoint.skip_verify, endpoint.authorities) {
        (false, ..) => "no".to_owned(),
        (true, true, _) => "not checked".to_owned(),
        (true, false, 0) => "checked".to_owned(),
        (true, false, more) => format!("checked, {more} more CA"),
    };
    if endpoint.client_certificate {
        tls.push_str(", client certificate");
    }
    let headers = endpoint.headers.iter().map(|header| format!(", header {header}"));
    vec![
        endpoint.url.clone(),
        if endpoint.upstream { "registry" } else { "mirror" }.to_owned(),
        may.collect::<Vec<_>>().join(", "),
        tls,
        std::iter::once(endpoint.shown.clone()).chain(headers).collect(),
        match &endpoint.answer {
            Some(Answer::Digest(digest)) if digest.is_empty() => "has it".to_owned(),
            Some(Answer::Digest(digest)) => digest.clone(),
            Some(Answer::Failure(failure)) => failure.clone(),
            Some(Answer::NotAsked(_)) | None => "not asked: no capability for it".to_owned(),
        },
    ]
}

fn explanation(explained: &ExplainResponse) -> Value {
    let endpoints = explained.endpoints.iter().map(|endpoint| {
        json!({
            "url": endpoint.url,
            "upstream": endpoint.upstream,
            "resolve": endpoint.resolve,
            "pull": endpoint.pull,
            "authorities": endpoint.authorities,
            "clientCertificate": endpoint.client_certificate,
            "skipVerify": endpoint.skip_verify,
            "headers": endpoint.headers,
            "shown": endpoint.shown,
            "answer": match &endpoint.answer {
                Some(Answer::Digest(digest)) => json!({ "digest": digest }),
                Some(Answer::Failure(failure)) => json!({ "failure": failure }),
                Some(Answer::NotAsked(_)) | None => Value::Null,
            },
        })
    });
    json!({
        "reference": explained.reference,
        "host": explained.host,
        "configFile": explained.config_file,
        "present": explained.present,
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

async fn list(client: Client, output: Output) -> Result<u8, Error> {
    let answer = client.cri_images().list_images(ListImagesRequest::default()).await;
    let mut images = answer.map_err(client.failed())?.into_inner().images;
    images.sort_by(|one, other| (&one.repo_tags, &one.id).cmp(&(&other.repo_tags, &other.id)));
    if output.output == Format::Table {
        let rows: Vec<_> = images
            .iter()
            .flat_map(|image| {
                let id = image.id.trim_start_matches("sha256:").get(..12).unwrap_or_default().to_owned();
                let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
                let row = move |name: &String| vec![name.clone(), id.clone(), bytes(image.size)];
                names.iter().map(row).collect::<Vec<_>>()
            })
            .collect();
        print!("{}", table(&["NAME", "ID", "SIZE"], &rows));
        return Ok(0);
    }
    let images = images.iter().map(|image| {
        json!({
            "id": image.id,
            "tags": image.repo_tags,
            "digests": image.repo_digests,
            "size": image.size,
            "pinned": image.pinned,
        })
    });
    print(&images.collect(), output.output)?;
    Ok(0)
}

/// To CRI an image that is not there is removed already; a person has mistyped its name.
async fn remove(client: Client, images: Vec<String>) -> Result<u8, Error> {
    for name in images {
        let image = Some(ImageSpec { image: name.clone(), ..ImageSpec::default() });
        let request = ImageStatusRequest { image: image.clone(), verbose: false };
        let found = client.cri_images().image_status(request).await.map_err(client.failed())?.into_inner();
        if found.image.is_none() {
            return Err(Error::Failed(format!("there is no image {name} (berth image ls)")));
        }
        client.cri_images().remove_image(RemoveImageRequest { image }).await.map_err(client.failed())?;
        println!("{name} is removed");
    }
    Ok(0)
}

/// Bytes of a piece.
const PIECE: usize = 256 << 10;

async fn load(client: Client, input: &Path, name: String, format: Format) -> Result<u8, Error> {
    let archive: Box<dyn AsyncRead + Send + Unpin> = match input == Path::new("-") {
        true => Box::new(tokio::io::stdin()),
        false => Box::new(tokio::fs::File::open(input).await.map_err(Error::file("read", input))?),
    };
    let (broken, mut failure) = tokio::sync::oneshot::channel();
    let state = (archive, Some(broken), name);
    let pieces = futures::stream::unfold(state, async |(mut archive, mut broken, name)| {
        let mut piece = vec![0; PIECE];
        match archive.read(&mut piece).await {
            Ok(0) => None,
            Ok(count) => {
                piece.truncate(count);
                Some((LoadRequest { piece, name }, (archive, broken, String::new())))
            }
            Err(error) => {
                // The stream's end would look like the archive's.
                let _ = broken.take()?.send(error);
                std::future::pending().await
            }
        }
    });
    let answer = tokio::select! {
        answer = async { client.images().load(pieces).await } => answer.map_err(client.failed())?.into_inner(),
        Ok(error) = &mut failure => return Err(Error::file("read", input)(error)),
    };
    if format != Format::Table {
        let images = answer.images.iter().map(|image| json!({ "id": image.id, "names": image.names }));
        print(&images.collect(), format)?;
        return Ok(0);
    }
    for image in answer.images {
        let name = image.names.first().unwrap_or(&image.id);
        println!("{name} is {}", image.id);
    }
    Ok(0)
}

async fn save(client: Client, output: &Path, images: Vec<String>) -> Result<u8, Error> {
    let to_stdout = output == Path::new("-");
    if to_stdout && std::io::stdout().is_terminal() {
        return Err(Error::Usage(
            "an archive is nothing for a terminal: --output FILE, or a pipe".to_owned(),
        ));
    }
    let request = SaveRequest { images };
    let mut pieces = client.images().save(request).await.map_err(client.failed())?.into_inner();
    let mut archive: Box<dyn AsyncWrite + Send + Unpin> = match to_stdout {
        true => Box::new(tokio::io::stdout()),
        false => Box::new(tokio::fs::File::create(output).await.map_err(Error::file("write", output))?),
    };
    while let Some(SaveResponse { piece }) = pieces.message().await.map_err(client.failed())? {
        archive.write_all(&piece).await.map_err(Error::file("write", output))?;
    }
    archive.flush().await.map_err(Error::file("write", output))?;
    Ok(0)
}

async fn prune(client: Client, dry_run: bool, format: Format) -> Result<u8, Error> {
    let answer = client.images().prune(PruneRequest { dry_run }).await.map_err(client.failed())?;
    let images = answer.into_inner().images;
    if format != Format::Table {
        let removed = images.iter().map(
            |image| json!({ "id": image.id, "names": image.names, "size": image.size, "dryRun": dry_run }),
        );
        print(&removed.collect(), format)?;
        return Ok(0);
    }
    for image in &images {
        let name = image.names.first().unwrap_or(&image.id);
        let what = if dry_run { "would be removed" } else { "is removed" };
        println!("{name} {what} ({})", bytes(image.size));
    }
    if images.is_empty() {
        println!("every image is in use");
    }
    Ok(0)
}
