//! Pulling from a registry: formats, authorisation, broken connections, damaged content, shared downloads.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use berth_image::{Answer, Credentials, LayerState, Progress, PullError};
use http::{Method, StatusCode};
use support::registry::Auth;
use support::{ImageBuilder, Node, Pack, Registry, Tar};
use tokio::sync::Semaphore;

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn small() -> ImageBuilder {
    ImageBuilder::new().layer(Tar::new().dir("etc").file("etc/name", "small"))
}

#[tokio::test]
async fn every_compression_and_both_manifest_formats_unpack_alike() {
    let (registry, node) = (Registry::start().await, Node::new());
    for (at, pack) in [Pack::Plain, Pack::Gzip, Pack::Zstd].into_iter().enumerate() {
        for docker in [false, true] {
            let mark = format!("{at}{docker}");
            let mut builder = ImageBuilder::new().mark(&mark).layer_as(
                Tar::new().dir("d").file("d/f", mark.as_bytes()).file("big", noise(3_000_000)),
                pack,
            );
            builder.docker = docker;
            let pushed = builder.push(&registry, "team/app", &mark);
            let reference = registry.reference(&format!("team/app:{mark}"));
            let id = node.pull(&reference).await.unwrap();
            assert_eq!(id.as_str(), pushed.config.as_str());
            let image = node.image(&reference);
            assert_eq!(image.repo_tags, std::slice::from_ref(&reference));
            assert_eq!(image.repo_digests, [registry.reference(&format!("team/app@{}", pushed.manifest))]);
            assert!(image.size > 3_000_000);
            let fs = node.layer_fs(&pushed.diff_ids[0]);
            assert_eq!(std::fs::read_to_string(fs.join("d/f")).unwrap(), mark);
            assert_eq!(std::fs::read(fs.join("big")).unwrap(), noise(3_000_000));
        }
    }
}

#[tokio::test]
async fn an_index_leads_to_this_machines_image_even_nested() {
    let (registry, node) = (Registry::start().await, Node::new());
    let pushed = small().push(&registry, "app", "single");
    let other = small().mark("other").push(&registry, "app", "other");
    let index = "application/vnd.oci.image.index.v1+json";
    let entry = |digest: &berth_image::Digest, architecture: &str| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1,
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let inner = serde_json::json!({
        "schemaVersion": 2, "mediaType": index,
        "manifests": [entry(&other.manifest, "s390x"), entry(&pushed.manifest, support::arch())],
    });
    let inner = registry.put_manifest("app", &[], index, &inner);
    let outer = serde_json::json!({
        "schemaVersion": 2, "mediaType": index,
        "manifests": [{ "mediaType": index, "digest": inner, "size": 1,
                        "platform": { "os": "linux", "architecture": support::arch() } }],
    });
    let outer = registry.put_manifest("app", &["multi"], index, &outer);
    let id = node.pull(&registry.reference("app:multi")).await.unwrap();
    assert_eq!(id.as_str(), pushed.config.as_str());
    let image = node.image(id.as_str());
    assert_eq!(image.repo_digests, [registry.reference(&format!("app@{outer}"))]);

    let foreign = serde_json::json!({ "schemaVersion": 2, "mediaType": index, "manifests": [entry(&other.manifest, "s390x")] });
    registry.put_manifest("app", &["foreign"], index, &foreign);
    let error = node.pull(&registry.reference("app:foreign")).await.unwrap_err();
    assert!(
        matches!(&error, PullError::NotAnImage { source, .. } if source.to_string().contains("s390x")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_digest_pull_invents_no_tag_and_a_second_name_joins_the_image() {
    let (registry, node) = (Registry::start().await, Node::new());
    let pushed = small().push(&registry, "app", "one");
    let by_digest = registry.reference(&format!("app@{}", pushed.manifest));
    let id = node.pull(&by_digest).await.unwrap();
    let image = node.image(&by_digest);
    assert!(image.repo_tags.is_empty());
    assert_eq!(image.repo_digests, std::slice::from_ref(&by_digest));
    assert_eq!(node.pull(&registry.reference("app:one")).await.unwrap(), id);
    small().push(&registry, "other/app", "two");
    assert_eq!(node.pull(&registry.reference("other/app:two")).await.unwrap(), id);
    assert_eq!(node.images.list().len(), 1);
    assert_eq!(node.image(id.as_str()).repo_tags.len(), 2);
    assert_eq!(
        registry.count(Method::GET, pushed.blobs[0].as_str()),
        1,
        "a present layer is not fetched again"
    );
}

#[tokio::test]
async fn a_tag_moves_to_the_image_pulled_last() {
    let (registry, node) = (Registry::start().await, Node::new());
    small().push(&registry, "app", "latest");
    let old = node.pull(&registry.reference("app")).await.unwrap();
    small().mark("new").push(&registry, "app", "latest");
    let new = node.pull(&registry.reference("app")).await.unwrap();
    assert_ne!(old, new);
    assert_eq!(node.image(&registry.reference("app")).id, new);
    assert!(node.image(old.as_str()).repo_tags.is_empty());
    assert_eq!(node.image(old.as_str()).repo_digests.len(), 1);
}

#[tokio::test]
async fn a_present_image_costs_one_request_which_can_still_be_refused() {
    let (registry, node) = (Registry::start().await, Node::new());
    small().push(&registry, "app", "latest");
    let reference = registry.reference("app");
    let id = node.pull(&reference).await.unwrap();
    registry.forget_seen();
    assert_eq!(node.pull(&reference).await.unwrap(), id);
    assert_eq!(registry.seen().len(), 1);
    assert_eq!(registry.count(Method::HEAD, "/manifests/latest"), 1);
    registry.set(|state| state.auth = Auth::Basic("u", "p"));
    let refused = node.pull(&reference).await.unwrap_err();
    assert!(matches!(refused, PullError::Unauthenticated { .. }), "{refused:?}");
    assert_eq!(node.pull_as(&reference, "u", "p").await.unwrap(), id);
}

#[tokio::test]
async fn every_kind_of_credential_is_accepted_where_it_is_right_and_nowhere_else() {
    let registry = Registry::start().await;
    small().push(&registry, "app", "latest");
    let reference = registry.reference("app");
    let user = || Credentials { username: "u".into(), password: "p:x".into(), ..Default::default() };
    let encoded = || Credentials { auth: "dTpwOng=".into(), ..Default::default() };
    let identity = || Credentials { identity_token: "refresh".into(), ..Default::default() };
    let token = || Credentials { registry_token: "good".into(), ..Default::default() };
    let elsewhere = || Credentials { server_address: "https://other.example".into(), ..user() };
    let here = || Credentials { server_address: format!("http://{}/v1/", registry.address), ..user() };
    for (auth, credentials, allowed) in [
        (Auth::Basic("u", "p:x"), Some(user()), true),
        (Auth::Basic("u", "p:x"), Some(encoded()), true),
        (Auth::Basic("u", "p:x"), Some(here()), true),
        (Auth::Basic("u", "p:x"), Some(elsewhere()), false),
        (Auth::Basic("u", "p:x"), None, false),
        (Auth::Basic("u", "other"), Some(user()), false),
        (Auth::Bearer(None), None, true),
        (Auth::Bearer(None), Some(Credentials::default()), true),
        (Auth::Bearer(Some(("u", "p:x"))), Some(user()), true),
        (Auth::Bearer(Some(("u", "p:x"))), None, false),
        (Auth::Bearer(Some(("u", "p:x"))), Some(token()), true),
        (Auth::Identity("refresh"), Some(identity()), true),
        (Auth::Identity("refresh"), Some(user()), false),
    ] {
        registry.set(|state| state.auth = auth.clone());
        let node = Node::new();
        match node.images.pull(&reference, credentials.clone(), &Progress::default()).await {
            Ok(_) => assert!(allowed, "{auth:?} took {credentials:?}"),
            Err(error) => {
                assert!(!allowed, "{auth:?} refused {credentials:?}: {error:?}");
                assert!(matches!(error, PullError::Unauthenticated { .. }), "{error:?}");
                assert!(node.leftovers().is_empty());
            }
        }
    }
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_server() {
    let (registry, blobs, node) = (Registry::start().await, Registry::start().await, Node::new());
    small().push(&registry, "app", "latest");
    small().push(&blobs, "app", "latest");
    registry.set(|state| {
        state.auth = Auth::Basic("u", "p");
        state.redirect_blobs = Some(blobs.address.to_string());
    });
    node.pull_as(&registry.reference("app"), "u", "p").await.unwrap();
    let seen = blobs.seen();
    assert_eq!(seen.len(), 2, "config and layer");
    assert!(seen.iter().all(|seen| !seen.headers.contains_key(http::header::AUTHORIZATION)));
}

#[tokio::test]
async fn a_broken_download_continues_where_it_broke() {
    for ranges in [true, false] {
        let (registry, node) = (Registry::start().await, Node::new());
        let content = noise(2_000_000);
        let pushed =
            ImageBuilder::new().layer(Tar::new().file("big", &content)).push(&registry, "app", "latest");
        registry.set(|state| {
            state.break_after = Some((700_000, 2));
            state.ranges = ranges;
        });
        node.pull(&registry.reference("app")).await.unwrap();
        assert_eq!(std::fs::read(node.layer_fs(&pushed.diff_ids[0]).join("big")).unwrap(), content);
        let asked: Vec<_> = registry
            .seen()
            .into_iter()
            .filter(|seen| seen.path.ends_with(pushed.blobs[0].as_str()))
            .map(|seen| seen.headers.get("range").map(|range| range.to_str().unwrap().to_owned()))
            .collect();
        assert_eq!(asked.len(), 3, "{asked:?}");
        assert_eq!(asked[0], None);
        assert_eq!(asked[1].as_deref(), Some("bytes=700000-"));
        let again = registry.seen().into_iter().rfind(|seen| seen.headers.contains_key("range")).unwrap();
        assert_eq!(again.headers["if-range"], format!("\"{}\"", pushed.blobs[0]));
    }
}

#[tokio::test]
async fn a_download_that_never_succeeds_fails_as_unavailable_and_leaves_nothing() {
    let (registry, node) = (Registry::start().await, Node::new());
    ImageBuilder::new().layer(Tar::new().file("big", noise(100_000))).push(&registry, "app", "latest");
    registry.set(|state| state.break_after = Some((0, usize::MAX)));
    let error = node.pull(&registry.reference("app")).await.unwrap_err();
    assert!(matches!(error, PullError::RegistryUnavailable { .. }), "{error:?}");
    assert!(node.leftovers().is_empty(), "{:?}", node.leftovers());
}

#[tokio::test]
async fn what_is_not_as_promised_is_refused_and_leaves_nothing() {
    let registry = Registry::start().await;
    // A blob with other bytes, one too short, one too long, one that is no gzip behind its magic.
    type Harm = fn(&[u8]) -> Vec<u8>;
    let harms: [(&str, Harm); 4] = [
        ("flipped", |bytes| {
            let mut bytes = bytes.to_vec();
            let last = bytes.len() - 6;
            bytes[last] ^= 1;
            bytes
        }),
        ("longer", |bytes| [bytes, b"more"].concat()),
        ("emptied", |bytes| vec![0; bytes.len()]),
        ("no-gzip", |bytes| [&[0x1f, 0x8b], &vec![7; bytes.len() - 2][..]].concat()),
    ];
    for (tag, harm) in harms {
        let node = Node::new();
        let pushed =
            ImageBuilder::new().layer(Tar::new().file(tag, noise(50_000))).push(&registry, "app", tag);
        registry.set(|state| {
            let blob = state.blobs.get_mut(pushed.blobs[0].as_str()).unwrap();
            *blob = harm(blob).into();
        });
        let error = node.pull(&registry.reference(&format!("app:{tag}"))).await.unwrap_err();
        assert!(matches!(error, PullError::Damaged { .. }), "{tag}: {error:?}");
        assert!(node.leftovers().is_empty(), "{tag}: {:?}", node.leftovers());
        assert!(node.images.list().is_empty());
    }
    // Layers under each other's diff ids.
    let node = Node::new();
    let mut builder = ImageBuilder::new().layer(Tar::new().file("a", "a")).layer(Tar::new().file("b", "b"));
    builder.swap_diff_ids = true;
    builder.push(&registry, "app", "swapped");
    let error = node.pull(&registry.reference("app:swapped")).await.unwrap_err();
    assert!(matches!(error, PullError::Damaged { .. }), "{error:?}");
    node.wait_until_empty().await;
    let error = node.pull(&registry.reference("app:missing")).await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error:?}");
}

#[tokio::test]
async fn a_manifest_that_is_wrong_about_a_blob_costs_no_other_image_that_blob() {
    let (registry, node) = (Registry::start().await, Node::new());
    let good = small().push(&registry, "app", "good");
    node.pull(&registry.reference("app:good")).await.unwrap();
    let blob = node.blob(&good.blobs[0]);
    // The same blob under a diff id that is not its own, and with a size that is not its own.
    let mut builder = small().layer(Tar::new().file("b", "b")).mark("swapped");
    builder.swap_diff_ids = true;
    builder.push(&registry, "app", "swapped");
    let mut builder = small().mark("shorter");
    builder.size_off_by = -1;
    builder.swap_diff_ids = true;
    let other = Tar::new().file("c", "c");
    builder.layer(other).push(&registry, "app", "shorter");
    for tag in ["swapped", "shorter"] {
        node.pull(&registry.reference(&format!("app:{tag}"))).await.unwrap_err();
        assert!(blob.exists(), "{tag}: the good image's blob is gone");
    }
    assert_eq!(node.images.list().len(), 1);
}

#[tokio::test]
async fn pulls_at_the_same_time_share_each_download() {
    let (registry, node) = (Registry::start().await, Node::new());
    let base = || Tar::new().file("base", noise(200_000));
    let pushed = ImageBuilder::new().layer(base()).push(&registry, "one", "latest");
    ImageBuilder::new().layer(base()).layer(Tar::new().file("x", "x")).push(&registry, "two", "latest");
    let gate = Arc::new(Semaphore::new(0));
    registry.set(|state| state.gate = Some(Arc::clone(&gate)));
    let (one, two) = (registry.reference("one"), registry.reference("two"));
    let pulls = futures::future::join_all([&one, &one, &two, &one, &two].map(|name| node.pull(name)));
    let opening = async {
        // The configs pass one by one; the base layer is asked for once, however many want it.
        while registry.count(Method::GET, pushed.blobs[0].as_str()) == 0 {
            gate.add_permits(1);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        gate.add_permits(1000);
    };
    let (ended, ()) = tokio::join!(pulls, opening);
    for result in ended {
        result.unwrap();
    }
    assert_eq!(registry.count(Method::GET, pushed.blobs[0].as_str()), 1);
    assert_eq!(node.images.list().len(), 2);
}

#[tokio::test]
async fn a_dropped_pull_leaves_nothing_and_does_not_hurt_another() {
    let (registry, node) = (Registry::start().await, Node::new());
    ImageBuilder::new().layer(Tar::new().file("big", noise(500_000))).push(&registry, "app", "latest");
    let reference = registry.reference("app");
    registry.set(|state| state.break_after = Some((100_000, 1)));
    let gone = tokio::time::timeout(Duration::from_millis(30), node.pull(&reference)).await;
    if gone.is_err() {
        node.wait_until_empty().await;
        assert!(node.images.list().is_empty());
    }
    // Two wait for one download; the first, which began it, goes.
    registry.set(|state| state.break_after = Some((100_000, 1)));
    let (images, name) = (node.images.clone(), reference.clone());
    let first = tokio::spawn(async move { images.pull(&name, None, &Progress::default()).await });
    let second = node.pull(&reference);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        first.abort();
    };
    let (second, ()) = tokio::join!(second, stop);
    second.unwrap();
    assert_eq!(node.images.list().len(), 1);
}

#[tokio::test]
async fn what_a_pull_would_do_is_explained_endpoint_by_endpoint() {
    let (upstream, mirror, node) = (Registry::start().await, Registry::start().await, Node::new());
    small().push(&upstream, "app", "latest");
    let reference = upstream.reference("app");
    let credentials = Credentials { username: "u".into(), password: "p".into(), ..Default::default() };
    let plain = node.images.explain(&reference, None).await.unwrap();
    assert!(plain.file.is_none() && plain.present.is_none(), "{plain:?}");
    // A loopback registry is asked in plain HTTP, then with TLS, which this one does not speak.
    let [http, https] = &plain.endpoints[..] else { panic!("{plain:?}") };
    let Answer::Has(Some(digest)) = &http.answer else { panic!("{http:?}") };
    assert!(http.upstream && http.shown == "nothing", "{http:?}");
    assert!(matches!(https.answer, Answer::Failed(_)), "{https:?}");

    let dir = node.certs_d().join(upstream.address.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("hosts.toml");
    let (up, at) = (upstream.address, mirror.address);
    std::fs::write(
        &file,
        format!(
            "server = 'http://{up}'\n[host.'http://{at}']\n[host.'http://{at}'.header]\nx-team = 'ours'\n\
             [host.'https://m.invalid']\ncapabilities = ['pull']\nskip_verify = true\n"
        ),
    )
    .unwrap();
    upstream.set(|state| state.auth = Auth::Basic("u", "p"));
    let told = node.images.explain(&reference, Some(credentials)).await.unwrap();
    assert_eq!(told.file, Some(file));
    let [first, content_only, server] = &told.endpoints[..] else { panic!("{told:?}") };
    assert!(!first.upstream && first.shown == "nothing" && first.headers == ["x-team"], "{first:?}");
    assert!(
        matches!(&first.answer, Answer::Failed(why) if why.to_string().contains("not found")),
        "{first:?}"
    );
    assert!(matches!(content_only.answer, Answer::NotAsked) && content_only.skip_verify, "{content_only:?}");
    assert!(server.upstream && server.shown == "user u", "{server:?}");
    assert!(matches!(&server.answer, Answer::Has(Some(found)) if found == digest), "{server:?}");
    assert!(node.images.list().is_empty() && node.leftovers().is_empty(), "nothing was fetched");
    let wrong = node.images.explain(&reference, None).await.unwrap();
    assert!(
        matches!(&wrong.endpoints[2].answer, Answer::Failed(why) if why.to_string().contains("401")),
        "{wrong:?}"
    );
}

#[tokio::test]
async fn mirrors_are_asked_first_and_fall_over_to_the_server() {
    let (upstream, mirror, node) = (Registry::start().await, Registry::start().await, Node::new());
    small().push(&upstream, "app", "latest");
    let dir = node.certs_d().join(upstream.address.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(
        dir.join("hosts.toml"),
        format!(
            "server = 'http://{}'\n[host.'http://{}']\ncapabilities = ['pull', 'resolve']\n[host.'http://{}'.header]\nx-team = 'ours'\n",
            upstream.address, mirror.address, mirror.address
        ),
    )
    .unwrap();
    upstream.set(|state| state.auth = Auth::Basic("u", "p"));
    let reference = upstream.reference("app");
    // The mirror has nothing: 404, then the server.
    node.pull_as(&reference, "u", "p").await.unwrap();
    let asked = mirror.seen();
    assert!(!asked.is_empty());
    for seen in &asked {
        assert_eq!(seen.query, format!("ns={}", upstream.address).replace(':', "%3A"));
        assert_eq!(seen.headers["x-team"], "ours");
        assert!(!seen.headers.contains_key("authorization"), "a mirror gets no credentials of the server's");
    }
    // The mirror has all: the server is not asked for content.
    small().push(&mirror, "app", "latest");
    node.images.remove(&reference).await.unwrap();
    upstream.forget_seen();
    node.pull_as(&reference, "u", "p").await.unwrap();
    assert!(upstream.seen().is_empty());
    // The mirror is broken.
    mirror.set(|state| state.broken = Some(StatusCode::BAD_GATEWAY));
    node.images.remove(&reference).await.unwrap();
    node.pull_as(&reference, "u", "p").await.unwrap();
    // Both are: unavailable.
    upstream.set(|state| state.broken = Some(StatusCode::SERVICE_UNAVAILABLE));
    let error = node.pull_as(&reference, "u", "p").await.unwrap_err();
    assert!(matches!(error, PullError::RegistryUnavailable { .. }), "{error:?}");
    // A faulty file is an error, not a detour.
    std::fs::write(dir.join("hosts.toml"), "nonsense = 1").unwrap();
    let error = node.pull(&reference).await.unwrap_err();
    assert!(matches!(error, PullError::Configuration { .. }), "{error:?}");
}

#[tokio::test]
async fn an_unreachable_registry_is_unavailable_and_a_malformed_name_is_said_to_be() {
    let node = Node::new();
    let closed = {
        let registry = Registry::start().await;
        registry.reference("app")
    };
    let error = node.pull(&closed).await.unwrap_err();
    assert!(matches!(error, PullError::RegistryUnavailable { .. }), "{error:?}");
    let error = node.pull("UPPER/case").await.unwrap_err();
    assert!(matches!(error, PullError::InvalidReference(_)), "{error:?}");
}

/// The daemon runs pulls as tasks of their own.
#[test]
fn pulls_can_move_between_threads() {
    fn is_send<T: Send>(_: T) {}
    let node = Node::new();
    is_send(node.images.pull("x", None, &Progress::default()));
}

#[tokio::test]
async fn a_pull_tells_how_far_it_is_also_one_that_waits_for_anothers_download() {
    let (registry, node) = (Registry::start().await, Node::new());
    let size = 300_000;
    ImageBuilder::new()
        .layer(Tar::new().file("small", b"x"))
        .layer(Tar::new().file("big", noise(size)))
        .push(&registry, "app", "latest");
    let reference = registry.reference("app");
    let (first, second) = (Progress::default(), Progress::default());
    assert!(first.layers().is_empty());
    let pulls = [&first, &second].map(|progress| node.images.pull(&reference, None, progress));
    for pulled in futures::future::join_all(pulls).await {
        pulled.unwrap();
    }
    assert_eq!(registry.count(Method::GET, "/blobs/"), 4, "its config for each, and the two layers once");
    assert_eq!(first.layers(), second.layers(), "both see the one download");
    for layer in first.layers() {
        assert_eq!((layer.state, layer.fetched), (LayerState::Done, layer.size), "{layer:?}");
        assert!(0 < layer.began && layer.began <= layer.ended, "{layer:?}");
    }
    assert!(first.layers()[1].size > size as u64, "from the lowest: {:?}", first.layers());
    // Under another name the layers are here before anything is fetched.
    ImageBuilder::new()
        .layer(Tar::new().file("small", b"x"))
        .layer(Tar::new().file("more", b"y"))
        .push(&registry, "other", "latest");
    let third = Progress::default();
    node.images.pull(&registry.reference("other"), None, &third).await.unwrap();
    let layers = third.layers();
    assert_eq!((layers[0].fetched, layers[0].began), (layers[0].size, 0), "it was here: {layers:?}");
    assert!(layers[1].began > 0, "{layers:?}");
}
