//! berth's nf_tables table, changed in batches of our own: a tenth of a millisecond where running `nft` takes twelve.

mod expr;
mod ruleset;
mod wire;

use ipnet::IpNet;

use self::ruleset::{Chain, Element, Set, chains, elements, sets};
pub(crate) use self::{ruleset::Family, wire::Attributes};
use crate::{
    hostport::Forward,
    netlink::{ACK, APPEND, CREATE, NetlinkError, Request, Socket, absent_is_fine},
};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const LIST_ELEMENT: u16 = 1;
/// Elements of one message: an attribute's length has 16 bits, and an element with its comment takes below 150 bytes.
const ELEMENTS_PER_MESSAGE: usize = 200;

/// Messages (`enum nf_tables_msg_types`).
#[derive(Clone, Copy, Debug)]
enum Kind {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    NewSet = 9,
    NewElements = 12,
    DeleteElements = 14,
    GetGeneration = 16,
}

/// The table of one bridge.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    name: String,
    bridge: String,
}

impl Table {
    pub(crate) fn of_bridge(bridge: &str) -> Self {
        Self { name: format!("berth-{bridge}"), bridge: bridge.to_owned() }
    }

    /// Whether the table is there: others may have flushed the whole rule set.
    pub(crate) fn exists(&self, socket: &mut Socket) -> Result<bool, NetlinkError> {
        let asked = Attributes::new().string(1, &self.name);
        match socket.query(self.request("look up", Kind::GetTable, ACK, asked)) {
            Ok(_) => Ok(true),
            Err(err) if err.is_absent() => Ok(false),
            Err(err) => Err(err),
        }
    }

    /// Makes the table anew, with these subnets and host ports, in one step: no packet sees it half made.
    pub(crate) fn replace(
        &self,
        socket: &mut Socket,
        subnets: &[IpNet],
        forwards: &[Forward],
    ) -> Result<(), NetlinkError> {
        commit(socket, self.replacement(subnets, forwards))
    }

    fn replacement(&self, subnets: &[IpNet], forwards: &[Forward]) -> Vec<Request> {
        let table = || Attributes::new().string(1, &self.name);
        let mut requests = vec![
            // Deleting needs it to exist; making it where it exists is no error.
            self.request("create", Kind::NewTable, ACK | CREATE, table()),
            self.request("empty", Kind::DeleteTable, ACK, table()),
            self.request("create", Kind::NewTable, ACK | CREATE, table()),
        ];
        for family in Family::BOTH {
            requests.extend(sets(family).iter().map(|set| self.new_set(set)));
        }
        for chain in chains(&self.bridge, subnets) {
            requests.push(self.new_chain(&chain));
            requests.extend(chain.rules.into_iter().map(|rule| {
                let attributes = table().string(2, chain.name).nested(4, rule);
                self.request("add a rule to", Kind::NewRule, ACK | CREATE | APPEND, attributes)
            }));
        }
        requests.extend(self.element_requests(
            "add host ports to",
            Kind::NewElements,
            ACK | CREATE,
            forwards,
        ));
        requests
    }

    /// Adds host ports; those that are there already, with the same target, are fine.
    pub(crate) fn add(&self, socket: &mut Socket, forwards: &[Forward]) -> Result<(), NetlinkError> {
        commit(socket, self.element_requests("add host ports to", Kind::NewElements, ACK | CREATE, forwards))
    }

    /// Takes host ports out; what is not there (any more) is fine. One element at a time: two ports of one number, at
    /// different addresses of the host, share the one that their connections are known by, and a transaction that
    /// takes out something twice takes out nothing.
    pub(crate) fn remove(&self, socket: &mut Socket, forwards: &[Forward]) -> Result<(), NetlinkError> {
        for (forward, element) in forwards.iter().flat_map(|forward| elements(forward).map(|e| (forward, e)))
        {
            let members = [encode_element(&element, &forward.owner)];
            let step = "remove host ports from";
            let request = self.elements(step, Kind::DeleteElements, ACK, &element.set, &members);
            absent_is_fine(commit(socket, vec![request]))?;
        }
        Ok(())
    }

    /// Deletes the table; an absent one is fine.
    pub(crate) fn delete(&self, socket: &mut Socket) -> Result<(), NetlinkError> {
        let named = Attributes::new().string(1, &self.name);
        absent_is_fine(commit(socket, vec![self.request("delete", Kind::DeleteTable, ACK, named)]))
    }

    fn new_set(&self, set: &Set) -> Request {
        const FLAG_MAP: u32 = 0x8;
        let attributes = Attributes::new()
            .string(1, &self.name)
            .string(2, &set.name)
            .u32(3, set.value.map_or(0, |_| FLAG_MAP))
            .u32(4, set.key_kind)
            .u32(5, set.key_length);
        let attributes = match set.value {
            Some((kind, length)) => attributes.u32(6, kind).u32(7, length),
            None => attributes,
        };
        // The kernel wants a number that is unique within the batch, although the name would do.
        let attributes = attributes.u32(10, 1);
        self.request("add a map to", Kind::NewSet, ACK | CREATE, attributes)
    }

    fn new_chain(&self, chain: &Chain) -> Request {
        let hook = Attributes::new().u32(1, chain.hook).u32(2, chain.priority.cast_unsigned());
        let attributes = Attributes::new()
            .string(1, &self.name)
            .string(3, chain.name)
            .nested(4, hook)
            .u32(5, libc::NF_ACCEPT.cast_unsigned())
            .string(7, chain.kind);
        self.request("add a chain to", Kind::NewChain, ACK | CREATE, attributes)
    }

    fn element_requests(&self, step: &str, kind: Kind, flags: u16, forwards: &[Forward]) -> Vec<Request> {
        let mut requests = Vec::new();
        for set in Family::BOTH.into_iter().flat_map(sets) {
            let members: Vec<Attributes> = forwards
                .iter()
                .flat_map(|forward| elements(forward).map(|element| (forward, element)))
                .filter(|(_, element)| element.set == set.name)
                .map(|(forward, element)| encode_element(&element, &forward.owner))
                .collect();
            let chunks = members.chunks(ELEMENTS_PER_MESSAGE);
            requests.extend(chunks.map(|chunk| self.elements(step, kind, flags, &set.name, chunk)));
        }
        requests
    }

    fn elements(&self, step: &str, kind: Kind, flags: u16, set: &str, members: &[Attributes]) -> Request {
        let list = members
            .iter()
            .fold(Attributes::new(), |list, element| list.nested(LIST_ELEMENT, element.clone()));
        let attributes = Attributes::new().string(1, &self.name).string(2, set).nested(3, list);
        self.request(step, kind, flags, attributes)
    }

    fn request(&self, step: &str, kind: Kind, flags: u16, attributes: Attributes) -> Request {
        Request {
            step: format!("{step} nf_tables table {}", self.name),
            kind: SUBSYSTEM << 8 | kind as u16,
            flags,
            payload: [header(NFPROTO_INET, 0).to_vec(), attributes.into_bytes()].concat(),
        }
    }
}

/// Whether the kernel can do all of the table, which takes modules that some leave out (the family `inet`, NAT): it is
/// made and deleted again in one transaction, so that no packet ever sees it.
pub(crate) fn rehearse(socket: &mut Socket, subnets: &[IpNet]) -> Result<(), NetlinkError> {
    let table =
        Table { name: format!("berth-probe-{}", std::process::id()), bridge: "berth-probe".to_owned() };
    let mut requests = table.replacement(subnets, &[]);
    let named = Attributes::new().string(1, &table.name);
    requests.push(table.request("delete", Kind::DeleteTable, ACK, named));
    commit(socket, requests)
}

/// Whether the kernel has nf_tables; the error says what it answered instead.
pub(crate) fn probe(socket: &mut Socket) -> Result<(), NetlinkError> {
    let request = Request {
        step: "use nf_tables (is it built into the kernel?)".to_owned(),
        kind: SUBSYSTEM << 8 | Kind::GetGeneration as u16,
        flags: ACK,
        payload: header(NFPROTO_UNSPEC, 0).to_vec(),
    };
    socket.query(request).map(drop)
}

fn commit(socket: &mut Socket, mut changes: Vec<Request>) -> Result<(), NetlinkError> {
    if changes.is_empty() {
        return Ok(());
    }
    let frame = |kind| Request {
        step: "change nf_tables".to_owned(),
        kind,
        flags: 0,
        payload: header(NFPROTO_UNSPEC, SUBSYSTEM).to_vec(),
    };
    changes.insert(0, frame(BATCH_BEGIN));
    changes.push(frame(BATCH_END));
    socket.transact(&changes)
}

/// `struct nfgenmsg`.
fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// `owner` becomes the element's comment, so that `nft list ruleset` says whose host port it is.
fn encode_element(element: &Element, owner: &str) -> Attributes {
    let data = |value: &[u8]| Attributes::new().bytes(1, value);
    let encoded = Attributes::new().nested(1, data(&element.key));
    match &element.value {
        Some(value) => encoded.nested(2, data(value)).bytes(6, &comment(owner)),
        None => encoded,
    }
}

/// libnftnl's user data: type 0 (comment), length, text with its NUL.
fn comment(text: &str) -> Vec<u8> {
    const LONGEST: usize = 127;
    let text = &text.as_bytes()[..text.len().min(LONGEST)];
    let length = u8::try_from(text.len() + 1).expect("at most 128");
    [&[0, length], text, &[0]].concat()
}
