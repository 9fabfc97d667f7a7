"""Synthetic text in many scripts for the tokenizer fixtures; every sentence here was written for this project."""

SENTENCES = {
    "en": [
        "The kettle clicked off before anyone had found a clean cup.",
        "We're sure they'll say it isn't what you'd expected, but I've checked and it's fine.",
        "SHE'LL ARRIVE AT NOON; DON'T LET THE DOG OUT, IT'S MUDDY.",
        "Rounding errors do not forget: they only wait for a larger sum.",
        "A river that never floods has forgotten what its banks are for.",
        "Please send 3 copies to room 12B by 09:45, or call +49 30 5550123.",
        "Nobody at the harbour could say why the ferries had stopped whistling.",
        "Continuity is cheap; continuity that can be proven is not.",
    ],
    "de": [
        "Der Bäcker öffnet früh, weil die Straßenbahn schon um fünf Uhr fährt.",
        "Übermäßig große Größen ließen Jürgens Füße schmerzen.",
        "Donnerstagnachmittagsbesprechungsprotokoll liegt bei.",
    ],
    "fr": [
        "L'été dernier, nous avons mangé des crêpes près de la forêt.",
        "Où est passé le garçon qui dessinait des œufs sur l'ardoise ?",
        "Ça ne m'étonne guère : d'habitude, il n'écoute qu'à moitié.",
    ],
    "es": ["¿Quién dejó la ventana abierta? ¡El niño señaló al pingüino!", "Mañana lloverá en la montaña, según dicen."],
    "pl": ["Zażółcony papier leżał pod łóżkiem, gdzie źrebię spało.", "Częste deszcze służą świeżym żółwiom."],
    "tr": ["Işıklar söndüğünde İstanbul'da çığlıklar sustu.", "Küçük göl ağaçların gölgesinde uyuyordu."],
    "vi": ["Buổi sáng, những người bán hàng gọi nhau bằng giọng khẽ.", "Chiếc thuyền nhỏ trôi về phía mặt trời lặn."],
    "ru": [
        "Старый мост скрипел, но каждую весну выдерживал ледоход.",
        "Ёжик объехал съезд и нашёл щавель.",
        "В 1987 году почта шла три недели.",
    ],
    "uk": ["Їжак сховав ґудзики під ґанком, а лелека це бачив."],
    "el": ["Το παλιό καράβι γύρισε στο λιμάνι χωρίς καπετάνιο.", "Ὁ ἄνεμος ἔπνεε ἀπὸ τὴν θάλασσαν."],
    "ar": ["وصل القطار متأخرًا ولم يكن أحدٌ ينتظر على الرصيف.", "كتبت الطفلة ٣٥ رسالة ثم نامت.", "مَرْحَبًا بِكُمْ فِي ٱلسُّوقِ"],
    "he": ["הספר הישן נשאר על המדף ליד החלון.", "שָׁלוֹם לַיְלָדִים שֶׁבַּגַּן", "ב־12 במאי ירד גשם."],
    "fa": ["گربه‌ی همسایه روی دیوار می‌خوابد و کتاب‌ها را نمی‌خواند."],
    "hi": ["पुरानी घड़ी हर घंटे दो बार बजती थी।", "क्षत्रिय की श्रद्धा और ज्ञान १२३ वर्ष पुराने हैं।"],
    "bn": ["নদীর ধারে ছোট্ট নৌকাটি বাঁধা ছিল।"],
    "ta": ["மழை பெய்தபோது கூரை மெதுவாகப் பாடியது."],
    "th": ["ร้านกาแฟเล็กๆ ริมคลองเปิดตอนเช้ามืด", "น้ำใสไหลเย็นเห็นตัวปลา ๑๒๓ ตัว"],
    "ka": ["ძველი წისქვილი ღამით უხმოდ ბრუნავდა."],
    "am": ["አሮጌው ድልድይ ከወንዙ በላይ ቆሞ ነበር።"],
    "zh": ["傍晚的渡口没有人，只有一只灯笼在风里摇。", "他把三百六十五封信都锁进了抽屉。", "漢字與簡體字混在一起：龍龙、體体。"],
    "ja": ["古い時計は誰もいない部屋で静かに鳴った。", "カタカナとひらがな、ｶﾀｶﾅの半角もあります。", "第１２回は午後３時からです。"],
    "ko": ["오래된 역에는 기차 대신 고양이가 왔다.", "내일은 12월 3일이고, 눈이 올지도 모른다.", "한글 자모"],
}

CODE = [
    "def mean(xs):\n    total = 0.0\n    for x in xs:\n        total += x\n    return total / max(len(xs), 1)\n",
    "for (int i = 0; i < n; ++i) {\n\tif (a[i] != b[i]) return -1;  // differs\n}\n",
    "#include <vector>\nstd::vector<std::pair<int, double>> v{{1, 2.5e-3}, {0x1F, -.5}};\n",
    "fn main() -> Result<(), Box<dyn Error>> {\n    let s = \"tab\\t\";\n    println!(\"{s:?}\");\n    Ok(())\n}\n",
    "SELECT name, COUNT(*) AS n FROM visits WHERE day >= '2021-03-04' GROUP BY name HAVING n > 10;",
    "{\"id\": 17, \"tags\": [\"a\", null, true], \"ratio\": 0.125, \"path\": \"C:\\\\tmp\\\\x\"}",
    "<div class=\"row\" id='r1'><p>Fish &amp; chips</p><br/></div>",
    "const f = async (x) => { await g(`${x}-${Math.PI.toFixed(3)}`); };",
    "if [ -n \"$HOME\" ]; then\n  echo \"${HOME%/}/bin\" | sed 's#/#:#g' >&2\nfi",
    "x = λ y. y + Σᵢ aᵢ·bᵢ ≤ ∞ ∧ ∀ε>0",
    "\\begin{equation} \\frac{1}{2}\\sum_{i=0}^{n} x_i^2 \\end{equation}",
    "    8 spaces\n\t\ttabs\n  \t mixed \t \n\n\n\ntrailing   \n",
]

EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "❤️", "1️⃣", "🧑🏿‍🚀", "🫠", "☺", "👨‍💻", "🐈‍⬛", "🦖🥝"]
COMBINING = ["é", "ñ", "Å", "ö̲", "q̣̇", "ṩ", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙", "가", "각", "a̐éö̲", "ﬁﬂ", "Ω", "K", "ſt", "'ſ", "İi̇", "ǆ"]
CONTROL = ["\x00", "\x01\x02", "\x07", "\x1b[31m", "\x7f", "\x85", "\xa0", "\u200b", "\u200d", "\u2028", "\u2029",
           "\u202e", "\u3000", "\ufeff", "\u180e", "\u1680", "\u2003", "\x0b\x0c", "\r", "\r\n", "\ufffd", "\U0010ffff",
           "\ue000", "\u2581", "Ġ", "Ċ", "<0x41>"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>",
           "<|start_header_id|>", "<|end_header_id|>", "<s>", "</s>", "<unk>", "<tool_call>", "</tool_call>", "<|im_",
           "<left>", "<right>", "<both>", "word", "<file_sep>", "<filename>", "<|im_start|><|im_end|>", "[INST]"]
NUMBERS = ["0", "7", "42", "123", "1234", "12345", "1,000,000", "3.14159", "-0.5", "6.02e23", "0xDEADBEEF", "1/2", "½",
           "²³", "Ⅷ", "٣٤٥", "१२३४", "๑๒", "１２３", "100%", "$19.99", "€5", "2024-06-13T10:20:30Z", "192.168.0.1",
           "①②③", "99999999999999999999", "v1.2.3-rc4", "一二三", "౧౨"]
CONTRACTIONS = ["I'm", "you'RE", "it'S", "don't", "WE'LL", "they'd've", "'tis", "o'clock", "'Twas", "y'all'd", "rock'n'roll",
                "'s", "'S", "' s", "''s", "’s", "can’t"]


def _sentence(rng, language=None):
    language = language or rng.choice(sorted(SENTENCES))
    return rng.choice(SENTENCES[language])


def _words(rng, count):
    pool = _sentence(rng).split() + _sentence(rng).split()
    return [rng.choice(pool) for _ in range(count)]


def _whitespace(rng):
    kinds = [" ", " ", " ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2003", "\u200b", "\x0b"]
    return "".join(rng.choice(kinds) for _ in range(rng.randint(1, 9)))


def _malformed(rng):
    """Text whose bytes were cut, swapped or overwritten."""
    data = bytearray((_sentence(rng) + rng.choice(EMOJI + [""])).encode())
    start = rng.randrange(len(data))
    data = data[start : start + rng.randint(4, 48)]
    for _ in range(rng.randint(1, 4)):
        where = rng.randint(0, len(data))
        junk = rng.choice([b"\x80", b"\xbf\xbf", b"\xc0\xaf", b"\xe2\x82", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xf4\x90\x80\x80",
                           b"\xff", b"\xfe\xff", b"\xc3", b"\xf8\x88\x80\x80\x80", b"\xe0\x80\xaf"])
        data[where:where] = junk
    return bytes(data)


def _random_characters(rng):
    """Single characters from the whole of the assigned planes that all Unicode versions since 13 agree on."""
    ranges = [(0x20, 0x7E), (0xA1, 0x17F), (0x370, 0x373), (0x391, 0x3A1), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A),
              (0x904, 0x939), (0xE01, 0xE3A), (0x10A0, 0x10C5), (0x1E00, 0x1EFF), (0x2010, 0x2027), (0x2190, 0x21FF),
              (0x2200, 0x22FF), (0x2500, 0x257F), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3),
              (0xFF01, 0xFF5E), (0x1D400, 0x1D454), (0x1F300, 0x1F5FF), (0x20000, 0x2A6D6)]
    low_high = [rng.choice(ranges) for _ in range(rng.randint(1, 14))]
    return "".join(chr(rng.randint(low, high)) for low, high in low_high)


def _mixture(rng):
    pools = [EMOJI, COMBINING, CONTROL, SPECIAL, NUMBERS, CONTRACTIONS]
    parts = []
    for _ in range(rng.randint(2, 7)):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(_words(rng, 3)))
        elif kind < 0.55:
            parts.append(_whitespace(rng))
        else:
            parts.append(rng.choice(rng.choice(pools)))
    return rng.choice(["", " "]).join(parts)


def make_strings(rng):
    """About 2,400 different strings; bytes for malformed UTF-8. The order and content depend on `rng` alone."""
    strings = [""]
    for pool in list(SENTENCES.values()) + [CODE, EMOJI, COMBINING, CONTROL, SPECIAL, NUMBERS, CONTRACTIONS]:
        for text in pool:
            strings += [text, " " + text, text + " "]
    strings += [" " * n for n in range(1, 20)] + ["\n" * n for n in range(1, 8)] + ["\t" * n for n in range(1, 5)]
    strings += ["a" * n for n in (47, 48, 49, 200)] + ["ab" * 60, "x" * 30 + " " * 30 + "y", "0123456789" * 8, "ハ" * 70]
    for _ in range(260):
        strings.append(" ".join(_words(rng, rng.randint(1, 12))))
    for _ in range(120):
        strings.append(_whitespace(rng).join(_words(rng, rng.randint(2, 6))))
    for _ in range(120):
        strings.append(_sentence(rng) + rng.choice(["", " ", "\n", "\n\n"]) + _sentence(rng))
    for _ in range(100):
        text = rng.choice(CODE)
        start = rng.randrange(len(text))
        strings.append(text[start : start + rng.randint(5, 60)])
    for _ in range(300):
        strings.append(_random_characters(rng))
    for _ in range(700):
        strings.append(_mixture(rng))
    for _ in range(250):
        strings.append(_malformed(rng))
    for _ in range(60):
        role = rng.choice(["system", "user", "assistant"])
        strings.append(f"<|im_start|>{role}\n{_sentence(rng)}<|im_end|>\n")
        strings.append(f"<s>[INST] {_sentence(rng)} [/INST] {_sentence(rng)}</s>")
    return list(dict.fromkeys(strings))
