//! The compiled CRI against a table of what it must be. The table (`cri-v1.tsv`) was written from the interface, so a
//! slip in `api.proto` shows here, whichever way it goes: nothing may be missing, nothing more may be there.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

const TABLE: &str = include_str!("cri-v1.tsv");
const PACKAGE: &str = "runtime.v1";

#[test]
fn every_name_number_and_type_is_as_in_the_table_and_there_is_no_other() {
    let expected: BTreeSet<String> =
        TABLE.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let compiled: BTreeSet<String> = describe(&cri()).into_iter().collect();

    let missing: Vec<_> = expected.difference(&compiled).collect();
    let extra: Vec<_> = compiled.difference(&expected).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nnot in the table: {extra:#?}");
}

#[test]
fn the_table_is_whole() {
    let count = |kind: &str| TABLE.lines().filter(|line| line.starts_with(kind)).count();
    assert_eq!(
        (count("rpc\t"), count("field\t"), count("value\t"), count("message\t")),
        (43, 478, 95, 18),
        "rpcs, fields, enum values and empty messages of Kubernetes 1.37"
    );
}

#[test]
fn a_describer_that_sees_no_difference_would_be_caught() {
    let mut file = cri();
    let message =
        file.message_type.iter_mut().find(|message| message.name() == "Mount").expect("Mount is there");
    message.field[0].number = Some(99);
    message.field[1].label = Some(Label::Repeated as i32);
    message.field.remove(2);

    let before: BTreeSet<String> = describe(&cri()).into_iter().collect();
    let after: BTreeSet<String> = describe(&file).into_iter().collect();
    assert_eq!(before.difference(&after).count(), 3, "a number, a label and a whole field were changed");
    assert_eq!(after.difference(&before).count(), 2);
}

fn cri() -> FileDescriptorProto {
    let all = FileDescriptorSet::decode(berth_cri::FILE_DESCRIPTOR_SET).expect("the descriptor set decodes");
    let mut files = all.file.into_iter().filter(|file| file.package() == PACKAGE);
    let file = files.next().expect("a file of package runtime.v1");
    assert!(files.next().is_none(), "CRI is one file");
    assert_eq!(file.syntax(), "proto3");
    file
}

/// One line for each rpc, field, enum value and empty message, in the table's format.
fn describe(file: &FileDescriptorProto) -> Vec<String> {
    let mut lines = Vec::new();
    file.service.iter().for_each(|service| describe_service(service, &mut lines));
    file.enum_type.iter().for_each(|item| describe_enum("", item, &mut lines));
    file.message_type.iter().for_each(|message| describe_message(message, &mut lines));
    lines
}

fn describe_service(service: &ServiceDescriptorProto, lines: &mut Vec<String>) {
    for method in &service.method {
        assert!(!method.client_streaming(), "{}: CRI streams from the server only", method.name());
        let stream = if method.server_streaming() { "stream " } else { "" };
        lines.push(format!(
            "rpc\t{}.{}\t{}\t{stream}{}",
            service.name(),
            method.name(),
            local(method.input_type()),
            local(method.output_type())
        ));
    }
}

fn describe_enum(prefix: &str, item: &EnumDescriptorProto, lines: &mut Vec<String>) {
    for value in &item.value {
        lines.push(format!("value\t{prefix}{}.{}\t{}\tenum", item.name(), value.name(), value.number()));
    }
}

fn describe_message(message: &DescriptorProto, lines: &mut Vec<String>) {
    let name = message.name();
    assert!(message.oneof_decl.is_empty(), "{name}: CRI has no oneof");
    if message.field.is_empty() {
        lines.push(format!("message\t{name}\t-\tempty"));
    }
    for field in &message.field {
        lines.push(format!(
            "field\t{name}.{}\t{}\t{}",
            field.name(),
            field.number(),
            field_type(message, field)
        ));
    }
    for item in &message.enum_type {
        describe_enum(&format!("{name}."), item, lines);
    }
    for nested in &message.nested_type {
        assert!(
            nested.options.as_ref().is_some_and(|options| options.map_entry()),
            "{name}: maps nest, no more"
        );
    }
}

fn field_type(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let name = match field.r#type() {
        Type::Message | Type::Enum => local(field.type_name()).to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let entry =
        message.nested_type.iter().find(|nested| format!("{}.{}", message.name(), nested.name()) == name);
    if let Some(entry) = entry {
        let of = |number| {
            let field =
                entry.field.iter().find(|field| field.number() == number).expect("a map entry has both");
            field_type(entry, field)
        };
        return format!("map<{},{}>", of(1), of(2));
    }
    let deprecated = field.options.as_ref().is_some_and(|options| options.deprecated());
    let label = match (field.label(), deprecated) {
        (Label::Repeated, false) => "repeated ",
        (Label::Optional, true) => "deprecated ",
        (Label::Optional, false) => "",
        other => panic!("{}.{}: {other:?} has no place in the table", message.name(), field.name()),
    };
    format!("{label}{name}")
}

/// A type's name without the package.
fn local(name: &str) -> &str {
    name.strip_prefix('.').and_then(|name| name.strip_prefix(PACKAGE)).map_or(name, |name| &name[1..])
}
