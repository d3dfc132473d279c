//! ImageService: what pulls, what is told about it, and how it goes away.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use berth_tests::{
    Node, Options,
    cri::code_of,
    image::{BuiltImage, Compression, Config, Format, Image, Layer, index},
    on_node_with,
    registry::{Access, Fault},
};
use k8s_cri::v1::{
    AuthConfig, ImageFilter, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ListImagesRequest,
    PullImageRequest,
};

/// An image that differs from others by its text only.
fn small(text: &str) -> Result<BuiltImage> {
    Image::new(vec![Layer::new().file("hello", 0o644, text)]).build()
}

fn on_empty_node(body: impl AsyncFnOnce(&Node) -> Result<()>) {
    on_node_with(Options::without_images(), body);
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        // Xorshift: incompressible enough that a layer keeps its size.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(bytes)
    .collect()
}

#[test]
fn one_image_is_known_by_tag_digest_short_name_and_id() {
    on_empty_node(async |node| {
        let built = small("one")?;
        let digest = node.registry().push("library/app", "1.0", &built);
        // The answer is the image's id, which kubelet passes on to CreateContainer.
        ensure!(node.pull("app:1.0").await? == built.id());
        for name in [
            "app:1.0".to_owned(),
            "docker.io/library/app:1.0".to_owned(),
            format!("docker.io/library/app@{digest}"),
            built.id().to_owned(),
            built.id()[7..19].to_owned(),
        ] {
            let image = node.image(&name).await?;
            ensure!(image.is_some_and(|image| image.id == built.id()), "{name} is not known");
        }
        let Some(image) = node.image("app:1.0").await? else { bail!("gone") };
        ensure!(image.repo_tags == ["docker.io/library/app:1.0"], "{image:?}");
        ensure!(image.repo_digests == [format!("docker.io/library/app@{digest}")], "{image:?}");
        ensure!(image.size > 0, "{image:?}");
        Ok(())
    });
}

#[test]
fn without_tag_latest_is_pulled_and_a_digest_needs_no_tag() {
    on_empty_node(async |node| {
        let latest = small("latest")?;
        let other = small("other")?;
        node.registry().push("library/app", "latest", &latest);
        let digest = node.registry().push("library/app", "v2", &other);
        ensure!(node.pull("docker.io/library/app").await? == latest.id());
        ensure!(node.pull(&format!("app@{digest}")).await? == other.id());
        let Some(image) = node.image(other.id()).await? else { bail!("not there") };
        ensure!(image.repo_tags.is_empty(), "{image:?}");
        ensure!(node.pull(&node.registry().reference("library/app:v2")).await? == other.id());
        Ok(())
    });
}

#[test]
fn docker_manifests_and_every_compression_pull() {
    on_empty_node(async |node| {
        for (name, format, compression) in [
            ("oci-gzip", Format::Oci, Compression::Gzip),
            ("oci-zstd", Format::Oci, Compression::Zstd),
            ("oci-plain", Format::Oci, Compression::None),
            ("docker-gzip", Format::Docker, Compression::Gzip),
            ("docker-plain", Format::Docker, Compression::None),
        ] {
            let mut image = Image::new(vec![Layer::new().file("name", 0o644, name).compression(compression)]);
            image.format = format;
            let built = image.build()?;
            node.registry().push(name, "latest", &built);
            ensure!(
                node.pull(&format!("docker.io/{name}:latest")).await.is_err(),
                "docker.io/NAME means library/NAME"
            );
            node.registry().push(&format!("library/{name}"), "latest", &built);
            ensure!(node.pull(name).await? == built.id(), "{name}");
        }
        Ok(())
    });
}

#[test]
fn an_index_gives_this_machines_image() {
    on_empty_node(async |node| {
        for (name, format) in [("oci", Format::Oci), ("docker", Format::Docker)] {
            let here = small(name)?;
            let mut elsewhere = Image::new(vec![Layer::new().file("other", 0o644, name)]);
            elsewhere.architecture = "s390x".to_owned();
            let elsewhere = elsewhere.build()?;
            let images = [&elsewhere, &here];
            let digest = node.registry().push_index(
                &format!("library/{name}"),
                "latest",
                &index(format, &images),
                &images,
            );
            ensure!(node.pull(name).await? == here.id());
            ensure!(node.pull(&format!("{name}@{digest}")).await? == here.id());
            ensure!(node.registry().count("GET", &elsewhere.layers[0].digest) == 0, "fetched too much");
        }
        Ok(())
    });
}

#[test]
fn an_index_without_this_machines_image_is_refused_by_platform() {
    on_empty_node(async |node| {
        let mut elsewhere = Image::new(vec![Layer::new().file("other", 0o644, "x")]);
        elsewhere.architecture = "s390x".to_owned();
        let elsewhere = elsewhere.build()?;
        node.registry().push_index(
            "library/far",
            "latest",
            &index(Format::Oci, &[&elsewhere]),
            &[&elsewhere],
        );
        let Err(error) = node.pull("far").await else { bail!("it was pulled") };
        ensure!(
            format!("{error:#}").contains("linux/amd64") || format!("{error:#}").contains("linux/arm64"),
            "{error:#}"
        );
        Ok(())
    });
}

#[test]
fn a_missing_image_is_not_found_and_names_the_reference() {
    on_empty_node(async |node| {
        let Err(error) = node.pull("nothing/here:1").await else { bail!("it was pulled") };
        ensure!(code_of(&error) == Some(tonic::Code::NotFound), "{error:#}");
        ensure!(format!("{error:#}").contains("docker.io/nothing/here:1"), "{error:#}");
        ensure!(node.image("nothing/here:1").await?.is_none(), "ImageStatus of an unknown image is empty");
        Ok(())
    });
}

fn login(username: &str, password: &str) -> Option<AuthConfig> {
    Some(AuthConfig { username: username.to_owned(), password: password.to_owned(), ..AuthConfig::default() })
}

#[test]
fn basic_and_bearer_registries_take_every_form_of_credentials() {
    on_empty_node(async |node| {
        let built = small("private")?;
        let reference = node.registry().reference("team/private:1");
        node.registry().push("team/private", "1", &built);
        for access in [Access::basic("ann", "secret"), Access::bearer("ann", "secret")] {
            node.registry().require(access.clone());
            ensure!(node.pull(&reference).await.is_err(), "anonymous was let in by {access:?}");
            let Err(error) = node.pull_as(&reference, login("ann", "wrong")).await else {
                bail!("a wrong password was accepted by {access:?}");
            };
            ensure!(!format!("{error:#}").contains("wrong\""), "the password is in the error");
            node.pull_as(&reference, login("ann", "secret")).await?;
            let joined = AuthConfig { auth: BASE64_STANDARD.encode("ann:secret"), ..AuthConfig::default() };
            node.pull_as(&reference, Some(joined)).await?;
        }
        let token = AuthConfig { identity_token: "refresh-ann".to_owned(), ..AuthConfig::default() };
        node.pull_as(&reference, Some(token)).await?;
        Ok(())
    });
}

#[test]
fn credentials_of_one_pull_are_not_used_for_the_next() {
    on_empty_node(async |node| {
        let reference = node.registry().reference("team/private:1");
        node.registry().push("team/private", "1", &small("private")?);
        node.registry().require(Access::bearer("ann", "secret"));
        node.pull_as(&reference, login("ann", "secret")).await?;
        // The image is here, but kubelet asks again to learn whether *these* credentials may have it.
        ensure!(node.pull(&reference).await.is_err(), "anonymous got another's image");
        Ok(())
    });
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    on_empty_node(async |node| {
        let layer = Layer::new().file("noise", 0o644, noise(1_500_000, 7)).compression(Compression::None);
        let built = Image::new(vec![layer]).build()?;
        node.registry().push("library/big", "latest", &built);
        node.registry().inject(&built.layers[0].digest, Fault::DropAfter(700_000));
        ensure!(node.pull("big").await? == built.id());
        let gets: Vec<_> = node
            .registry()
            .requests()
            .into_iter()
            .filter(|request| request.method == "GET" && request.path.contains(&built.layers[0].digest))
            .collect();
        ensure!(gets.len() == 2, "{gets:?}");
        let range = gets[1].range.as_deref().unwrap_or_default();
        ensure!(
            range.starts_with("bytes=") && range != "bytes=0-",
            "the second request began anew: {range:?}"
        );
        Ok(())
    });
}

#[test]
fn a_busy_registry_is_asked_again() {
    on_empty_node(async |node| {
        let built = small("busy")?;
        node.registry().push("library/busy", "latest", &built);
        node.registry().inject("/manifests/", Fault::Status(503));
        node.registry().inject("/blobs/", Fault::Status(429));
        ensure!(node.pull("busy").await? == built.id());
        Ok(())
    });
}

#[test]
fn wrong_bytes_never_become_an_image() {
    on_empty_node(async |node| {
        let built = small("broken")?;
        node.registry().push("library/broken", "latest", &built);
        // More often than any sensible number of attempts.
        for _ in 0..20 {
            node.registry().inject(&built.layers[0].digest, Fault::Corrupt);
        }
        let Err(error) = node.pull("broken").await else { bail!("it was pulled") };
        ensure!(
            format!("{error:#}").contains("digest") || format!("{error:#}").contains(&built.layers[0].digest),
            "{error:#}"
        );
        ensure!(node.image("broken").await?.is_none());
        Ok(())
    });
}

#[test]
fn pulls_of_the_same_image_at_the_same_time_share_the_download() {
    on_empty_node(async |node| {
        let layer = Layer::new().file("noise", 0o644, noise(3_000_000, 3));
        let built = Image::new(vec![layer]).build()?;
        node.registry().push("library/shared", "latest", &built);
        let pulls = futures::future::join_all((0..6).map(|_| node.pull("shared"))).await;
        for pull in pulls {
            ensure!(pull? == built.id());
        }
        ensure!(node.registry().count("GET", &built.layers[0].digest) == 1, "downloaded more than once");
        Ok(())
    });
}

#[test]
fn a_pull_obeys_the_callers_deadline() {
    on_empty_node(async |node| {
        let built = small("slow")?;
        node.registry().push("library/slow", "latest", &built);
        node.registry().inject(&built.layers[0].digest, Fault::StallAfter(10));
        let image = ImageSpec { image: "slow".to_owned(), ..ImageSpec::default() };
        let mut request =
            tonic::Request::new(PullImageRequest { image: Some(image), ..PullImageRequest::default() });
        request.set_timeout(Duration::from_millis(500));
        let Err(status) = node.images().pull_image(request).await else { bail!("it was pulled") };
        ensure!(matches!(status.code(), tonic::Code::DeadlineExceeded | tonic::Code::Cancelled), "{status}");
        // The next pull is not held up by the one that was given up.
        ensure!(node.pull("slow").await? == built.id());
        Ok(())
    });
}

#[test]
fn a_second_pull_of_an_unchanged_image_downloads_no_layer() {
    on_empty_node(async |node| {
        let built = small("again")?;
        node.registry().push("library/again", "latest", &built);
        node.pull("again").await?;
        node.registry().clear_log();
        ensure!(node.pull("again").await? == built.id());
        ensure!(node.registry().count("GET", "/blobs/") == 0, "{:?}", node.registry().requests());
        ensure!(!node.registry().requests().is_empty(), "the registry was not asked at all");
        Ok(())
    });
}

#[test]
fn a_moved_tag_leaves_the_old_image_without_it() {
    on_empty_node(async |node| {
        let (old, new) = (small("old")?, small("new")?);
        node.registry().push("library/app", "1", &old);
        node.pull("app:1").await?;
        node.registry().push("library/app", "1", &new);
        ensure!(node.pull("app:1").await? == new.id());
        let Some(image) = node.image(old.id()).await? else { bail!("the old image is gone") };
        ensure!(image.repo_tags.is_empty(), "{image:?}");
        ensure!(node.image("app:1").await?.is_some_and(|image| image.id == new.id()));
        Ok(())
    });
}

#[test]
fn list_filters_by_reference_and_unknown_ones_list_nothing() {
    on_empty_node(async |node| {
        for name in ["one", "two"] {
            node.registry().push(&format!("library/{name}"), "latest", &small(name)?);
            node.pull(name).await?;
        }
        ensure!(node.image_list().await?.len() == 2);
        for (reference, count) in [("two:latest", 1), ("three", 0)] {
            let image = Some(ImageSpec { image: reference.to_owned(), ..ImageSpec::default() });
            let request = ListImagesRequest { filter: Some(ImageFilter { image }) };
            let images = node.images().list_images(request).await?.into_inner().images;
            ensure!(images.len() == count, "{reference}: {images:?}");
        }
        Ok(())
    });
}

#[test]
fn status_tells_the_user_and_verbose_the_config() {
    on_empty_node(async |node| {
        for (name, user, uid, username) in
            [("number", "1234:5678", Some(1234), ""), ("name", "www-data", None, "www-data")]
        {
            let mut image = Image::new(vec![Layer::new().file("name", 0o644, name)]);
            image.config = Config { user: user.to_owned(), ..Config::default() };
            node.registry().push(&format!("library/{name}"), "latest", &image.build()?);
            node.pull(name).await?;
            let Some(image) = node.image(name).await? else { bail!("not there") };
            ensure!(image.uid.map(|uid| uid.value) == uid && image.username == username, "{image:?}");
        }
        let image = Some(ImageSpec { image: "number".to_owned(), ..ImageSpec::default() });
        let request = ImageStatusRequest { image, verbose: true };
        let info = node.images().image_status(request).await?.into_inner().info;
        ensure!(info.values().any(|text| text.contains("1234:5678")), "{info:?}");
        Ok(())
    });
}

#[test]
fn removing_by_any_name_removes_all_names_and_is_repeatable() {
    on_empty_node(async |node| {
        let built = small("many names")?;
        for (repository, tag) in [("library/a", "1"), ("library/a", "2"), ("library/b", "1")] {
            node.registry().push(repository, tag, &built);
            node.pull(&format!("docker.io/{repository}:{tag}")).await?;
        }
        let Some(image) = node.image(built.id()).await? else { bail!("not there") };
        ensure!(image.repo_tags.len() == 3, "{image:?}");
        node.remove_image("docker.io/library/b:1").await?;
        ensure!(node.image_list().await?.is_empty());
        node.remove_image("docker.io/library/b:1").await?;
        node.remove_image(&"0".repeat(64)).await
    });
}

#[test]
fn imagefsinfo_counts_what_is_stored_and_works_on_an_empty_store() {
    on_empty_node(async |node| {
        let used = async || {
            let answer = node.images().image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
            let Some(filesystem) = answer.image_filesystems.into_iter().next() else {
                bail!("no image filesystem")
            };
            let (Some(bytes), Some(inodes), Some(place)) =
                (filesystem.used_bytes, filesystem.inodes_used, filesystem.fs_id)
            else {
                bail!("something is missing")
            };
            ensure!(filesystem.timestamp > 0 && std::path::Path::new(&place.mountpoint).exists());
            Ok((bytes.value, inodes.value))
        };
        let before = used().await?;
        let layer = Layer::new().file("noise", 0o644, noise(4_000_000, 5)).compression(Compression::None);
        node.registry().push("library/sized", "latest", &Image::new(vec![layer]).build()?);
        node.pull("sized").await?;
        let with = used().await?;
        ensure!(with.0 >= before.0 + 4_000_000, "{before:?} then {with:?}");
        ensure!(with.1 > before.1, "{before:?} then {with:?}");
        node.remove_image("sized").await?;
        let after = berth_tests::wait_until("the space to be free", berth_tests::PATIENCE, async || {
            let after = used().await?;
            ensure!(after.0 < before.0 + 1_000_000, "{after:?}");
            Ok(after)
        })
        .await?;
        ensure!(after.1 <= with.1);
        Ok(())
    });
}

#[test]
fn images_survive_a_kill_of_the_daemon() {
    on_empty_node(async |node| {
        let built = small("kept")?;
        node.registry().push("library/kept", "latest", &built);
        node.pull("kept").await?;
        let before = node.image_list().await?;
        node.kill9().await?;
        node.start().await?;
        ensure!(node.image_list().await? == before);
        node.registry().clear_log();
        node.pull("kept").await?;
        ensure!(node.registry().count("GET", "/blobs/") == 0, "layers were fetched again");
        Ok(())
    });
}
