//! Doors for the fuzz target: what a plugin sends, read as the runtime reads it.

use prost::Message as _;

use crate::{
    CreateContainerRequest, CreateContainerResponse, RegisterPluginRequest, UpdateContainersRequest,
    merge::{Creation, Updates},
    oci,
    wire::{
        message::{Message, Messages},
        mux::Frames,
    },
};

/// A stream of bytes. The first one says into pieces of which length it is cut.
pub fn stream(input: &[u8]) {
    let Some((piece, bytes)) = input.split_first() else { return };
    let mut frames = Frames::default();
    let mut messages = Messages::default();
    for piece in bytes.chunks(usize::from(*piece).max(1)) {
        frames.buffer().extend_from_slice(piece);
        while let Ok(Some((_, payload))) = frames.next() {
            messages.push(&payload);
            while let Ok(Some(message)) = messages.next() {
                look_at(message);
            }
        }
    }
}

fn look_at(message: Message) {
    match message {
        Message::Request(_, request) => {
            drop(RegisterPluginRequest::decode(request.payload.clone()));
            let updates = UpdateContainersRequest::decode(request.payload).unwrap_or_default();
            drop(Updates::default().add("10-a", updates.update, None, None));
        }
        Message::Response(_, response) => answer(&response.payload),
        Message::Other => {}
    }
}

/// An answer to CreateContainer, by two plugins.
pub fn answer(payload: &[u8]) {
    let Ok(answer) = CreateContainerResponse::decode(payload) else { return };
    let mut creation = Creation::new(CreateContainerRequest::default());
    if creation.add("10-a", answer.clone()).is_err() {
        return;
    }
    // Whatever is set twice is a conflict; what is only taken away twice is not.
    drop(creation.add("20-b", answer));
    let (adjustment, ..) = creation.finish();
    let mut spec = oci_spec::runtime::Spec::default();
    drop(oci::adjust(&mut spec, adjustment, true));
}
