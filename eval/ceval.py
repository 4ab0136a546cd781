"""C-Eval: 52 subjects of Chinese exams from middle school to profession, four options, one of them right.

Y. Huang et al., "C-Eval: A Multi-Level Multi-Discipline Chinese Evaluation Suite for Foundation Models" (2023). The
validation split (1,346 questions) is scored unless the path names another. Three protocols:

- `official`: the benchmark's prompt, 0 to 5 worked examples, mean over subjects. `--mode choice` adds the likelihoods
  of both spellings of a letter (`A` and ` A`, whichever the tokenizer knows there); `scorings` asks for every rule of
  `eval/likelihood.py`; `generate` reads the letter from a response, `cot` after reasoning that 让我们一步一步思考
  begins.
- `lm_eval`: prompt and score of lm-evaluation-harness 0.4.13 (`ceval-valid`): likelihood of ` A` to ` D`, mean over
  questions. Its header lacks 考试. Predict with `--data.template=raw`.
- `chinese_llama_alpaca`: the runner of Chinese-LLaMA-Alpaca with its instruction template: the question ends with
  答案是什么？, no header without worked examples, the logits of both spellings added up (as log-likelihoods, whose
  order is the same where each spelling is one token), mean over questions.
"""

from eval.aggregation import MACRO, MICRO
from eval.benchmark import Benchmark
from eval.choice_exam import LETTERS, Exam, Subject
from eval.choice_lm_eval import lm_eval_protocol
from eval.choice_prompts import OPTIONS, Wording, asking, asking_for_every_rule
from eval.choice_scores import Marking, Ranking, scoring
from eval.likelihood import SCORINGS, spelled

_GROUPS = {
    "STEM": {
        "computer_network": "计算机网络",
        "operating_system": "操作系统",
        "computer_architecture": "计算机组成",
        "college_programming": "大学编程",
        "college_physics": "大学物理",
        "college_chemistry": "大学化学",
        "advanced_mathematics": "高等数学",
        "probability_and_statistics": "概率统计",
        "discrete_mathematics": "离散数学",
        "electrical_engineer": "注册电气工程师",
        "metrology_engineer": "注册计量师",
        "high_school_mathematics": "高中数学",
        "high_school_physics": "高中物理",
        "high_school_chemistry": "高中化学",
        "high_school_biology": "高中生物",
        "middle_school_mathematics": "初中数学",
        "middle_school_biology": "初中生物",
        "middle_school_physics": "初中物理",
        "middle_school_chemistry": "初中化学",
        "veterinary_medicine": "兽医学",
    },
    "Social Science": {
        "college_economics": "大学经济学",
        "business_administration": "工商管理",
        "marxism": "马克思主义基本原理",
        "mao_zedong_thought": "毛泽东思想和中国特色社会主义理论体系概论",
        "education_science": "教育学",
        "teacher_qualification": "教师资格",
        "high_school_politics": "高中政治",
        "high_school_geography": "高中地理",
        "middle_school_politics": "初中政治",
        "middle_school_geography": "初中地理",
    },
    "Humanities": {
        "modern_chinese_history": "近代史纲要",
        "ideological_and_moral_cultivation": "思想道德修养与法律基础",
        "logic": "逻辑学",
        "law": "法学",
        "chinese_language_and_literature": "中国语言文学",
        "art_studies": "艺术学",
        "professional_tour_guide": "导游资格",
        "legal_professional": "法律职业资格",
        "high_school_chinese": "高中语文",
        "high_school_history": "高中历史",
        "middle_school_history": "初中历史",
    },
    "Other": {
        "civil_servant": "公务员",
        "sports_science": "体育学",
        "plant_protection": "植物保护",
        "basic_medicine": "基础医学",
        "clinical_medicine": "临床医学",
        "urban_and_rural_planner": "注册城乡规划师",
        "accountant": "注册会计师",
        "fire_engineer": "注册消防工程师",
        "environmental_impact_assessment_engineer": "环境影响评价工程师",
        "tax_accountant": "税务师",
        "physician": "医师资格",
    },
}

# C-Eval Hard, as its README names them.
_HARD = frozenset(
    {
        "advanced_mathematics",
        "discrete_mathematics",
        "probability_and_statistics",
        "college_chemistry",
        "college_physics",
        "high_school_mathematics",
        "high_school_chemistry",
        "high_school_physics",
    }
)

EXAM = Exam(
    title="C-Eval",
    subjects={
        name: Subject(chinese, group) for group, subjects in _GROUPS.items() for name, chinese in subjects.items()
    },
    split="val",
    splits={"val": 1346, "test": 12342},
    file="{subject}_{split}.csv",
    question="question",
    answer="answer",
    explanation="explanation",
    pointer="C-Eval withheld those of its test split until 2025-07-27: score 'val', or get the release that has them.",
)

_HEADER = "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n\n"
_QUESTION = "{question}" + OPTIONS
_THINK = "\n答案：让我们一步一步思考，\n"
OFFICIAL = Wording(_HEADER, _QUESTION + "\n答案：", _QUESTION + "\n答案：{answer}\n\n")
CHAIN_OF_THOUGHT = Wording(
    _HEADER, _QUESTION + _THINK + "1.", _QUESTION + _THINK + "{explanation}\n所以答案是{answer}。\n\n"
)
LM_EVAL = Wording(
    "以下是中国关于{subject}的单项选择题，请选出其中的正确答案。\n\n",
    _QUESTION + "\n答案：",
    _QUESTION + "\n答案： {answer}\n\n",
    strips=True,
)
CHINESE_LLAMA_ALPACA = Wording(
    _HEADER, _QUESTION + "\n答案是什么？ ", _QUESTION + "\n答案：{answer}\n\n", header_alone=False
)

_SHOTS = range(6)
_choice = asking(EXAM, OFFICIAL, options=spelled(LETTERS))

_LM_EVAL = lm_eval_protocol("ceval", EXAM, LM_EVAL, part="hard", part_subjects=_HARD)

_CHINESE_LLAMA_ALPACA = Benchmark(
    name="ceval",
    protocol="chinese_llama_alpaca",
    version=1,
    description="as Chinese-LLaMA-Alpaca ran it: logits of both spellings added, mean over questions; 0 to 5 shots",
    prepare=asking(EXAM, CHINESE_LLAMA_ALPACA, options=spelled(LETTERS)),
    score=scoring(EXAM, Marking(Ranking(multiplies=True), (MICRO, MACRO), group_score=MICRO)),
    shots=_SHOTS,
)

BENCHMARK = Benchmark(
    name="ceval",
    protocol="official",
    version=1,
    description="C-Eval, 52 subjects, mean over subjects; --mode choice, scorings, generate, cot; 0 to 5 shots",
    prepare=_choice,
    score=scoring(
        EXAM,
        Marking(None, (MACRO, MICRO), group_score=MACRO, part="hard", part_subjects=_HARD),
    ),
    modes={
        "choice": _choice,
        "scorings": asking_for_every_rule(EXAM, OFFICIAL),
        "generate": asking(EXAM, OFFICIAL),
        "cot": asking(EXAM, CHAIN_OF_THOUGHT, reading="cot"),
    },
    shots=_SHOTS,
    scorings=tuple(SCORINGS),
    protocols={"lm_eval": _LM_EVAL, "chinese_llama_alpaca": _CHINESE_LLAMA_ALPACA},
)
