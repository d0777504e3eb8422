"""The meta-learners: one file each, and a line here."""

from __future__ import annotations

from raymeta.meta.learner import Learner
from raymeta.meta.learners.alignment import Alignment
from raymeta.meta.learners.alpaca import Alpaca
from raymeta.meta.learners.cavia import Cavia
from raymeta.meta.learners.imaml import Imaml
from raymeta.meta.learners.maml import Maml
from raymeta.meta.learners.maml_plus_plus import MamlPlusPlus
from raymeta.meta.learners.matching import Matching
from raymeta.meta.learners.meta_sgd import MetaSgd
from raymeta.meta.learners.proto_maml import ProtoMaml
from raymeta.meta.learners.prototypes import Prototypes
from raymeta.meta.learners.reptile import Reptile
from raymeta.meta.learners.ridge import Ridge

LEARNERS: dict[str, type[Learner]] = {
    Maml.name: Maml,
    Reptile.name: Reptile,
    MetaSgd.name: MetaSgd,
    MamlPlusPlus.name: MamlPlusPlus,
    ProtoMaml.name: ProtoMaml,
    Cavia.name: Cavia,
    Imaml.name: Imaml,
    Prototypes.name: Prototypes,
    Matching.name: Matching,
    Alignment.name: Alignment,
    Ridge.name: Ridge,
    Alpaca.name: Alpaca,
}
