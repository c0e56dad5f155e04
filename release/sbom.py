"""A software bill of materials in CycloneDX 1.6, the same bytes for the same parts."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from release.parts import Part

NAMESPACE: Final = uuid.UUID("0c2b1c4e-2f5c-5a53-9d3f-6f1e0d7c9a11")


def document(kind: str, version: str, parts: Iterable[Part], created: datetime) -> str:
    """`kind`: image or wheel. Raises: ValueError if the result does not comply with CycloneDX's schema."""
    is_image = kind == "image"
    main = Component(
        type=ComponentType.CONTAINER if is_image else ComponentType.APPLICATION,
        name="poiesis",
        version=version,
        bom_ref="poiesis",
        purl=PackageURL(type="oci" if is_image else "pypi", name="poiesis", version=version),
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
    )
    bom = Bom(components=[_component(part) for part in parts if (part.kind, part.name) != ("pypi", "poiesis")])
    bom.metadata.component = main
    bom.metadata.timestamp = created.astimezone(UTC)
    bom.dependencies = [Dependency(main.bom_ref, [Dependency(c.bom_ref) for c in bom.components])]
    for component in bom.components:
        bom.register_dependency(component)
    bom.serial_number = uuid.uuid5(
        NAMESPACE, "\n".join(sorted(c.bom_ref.value or "" for c in bom.components)) + kind + version
    )
    text = JsonV1Dot6(bom).output_as_string(indent=2)
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ValueError(f"the SBOM of the {kind} is not valid: {problem}")
    return text + "\n"


def _component(part: Part) -> Component:
    namespace = "debian" if part.kind == "deb" else None
    purl = PackageURL(type=part.kind, namespace=namespace, name=part.name, version=part.version)
    licences = [LicenseFactory().make_from_string(part.licence)] if part.licence else []
    single = part.sha256 if len(part.sha256) == 1 else ()
    return Component(
        type=ComponentType.LIBRARY,
        name=part.name,
        version=part.version,
        bom_ref=str(purl),
        purl=purl,
        licenses=licences,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=value) for value in single],
        # one of several files, by platform: not the hash of the component
        properties=[Property(name="poiesis:sha256", value=value) for value in part.sha256 if not single],
    )
