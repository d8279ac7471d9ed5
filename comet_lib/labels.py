"""Names of labels and languages, apart: a worker process that needs no more loads no more."""

#: AfriSenti's fourteen languages (Muhammad et al., EMNLP 2023), ISO 639-3 as its folders name them.
LANGUAGES = {
    "amh": "Amharic",
    "arq": "Algerian Arabic",
    "ary": "Moroccan Arabic",
    "hau": "Hausa",
    "ibo": "Igbo",
    "kin": "Kinyarwanda",
    "orm": "Oromo",
    "pcm": "Nigerian Pidgin",
    "por": "Mozambican Portuguese",
    "swa": "Swahili",
    "tir": "Tigrinya",
    "tso": "Xitsonga",
    "twi": "Twi",
    "yor": "Yoruba",
}
#: Our label order. Other sources number differently, so labels are always mapped by name.
LABELS = ("negative", "neutral", "positive")
