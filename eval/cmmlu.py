"""CMMLU: 67 subjects from elementary school to profession, many of them about China, four options, one of them right.

H. Li et al., "CMMLU: Measuring massive multitask language understanding in Chinese" (2023). Two protocols:

- `official`: the benchmark's prompt, 0 to 5 worked examples, mean over subjects. `--mode choice` adds the likelihoods
  of both spellings of a letter (`A` and ` A`); `scorings` asks for every rule of `eval/likelihood.py`; `generate`
  reads the letter from a response, `cot` after reasoning that 逐步分析并给出答案选项 asks for.
- `lm_eval`: prompt and score of lm-evaluation-harness 0.4.13 (`cmmlu`): likelihood of ` A` to ` D`, mean over
  questions. Predict with `--data.template=raw`.

Two things of the original are left out on purpose. It takes a random letter where it finds none: here such a response
is `unparsed`. And it drops the longest worked examples where a prompt is over 2,048 tokens: that needs the tokenizer,
which only `ift predict` has, so that all stay, and `ift predict` refuses what is longer than it may be.
"""

from eval.aggregation import MACRO, MICRO
from eval.benchmark import Benchmark
from eval.choice_exam import LETTERS, Exam, Subject
from eval.choice_lm_eval import lm_eval_protocol
from eval.choice_prompts import OPTIONS, Wording, asking, asking_for_every_rule
from eval.choice_scores import Marking, scoring
from eval.likelihood import SCORINGS, spelled

_GROUPS = {
    "STEM": {
        "anatomy": "解剖学",
        "astronomy": "天文学",
        "college_actuarial_science": "大学精算学",
        "college_engineering_hydrology": "大学工程水文学",
        "college_mathematics": "大学数学",
        "college_medical_statistics": "大学医学统计",
        "computer_science": "计算机科学",
        "conceptual_physics": "概念物理学",
        "electrical_engineering": "电气工程",
        "elementary_mathematics": "初等数学",
        "genetics": "遗传学",
        "high_school_biology": "高中生物",
        "high_school_chemistry": "高中化学",
        "high_school_mathematics": "高中数学",
        "high_school_physics": "高中物理学",
        "machine_learning": "机器学习",
        "virology": "病毒学",
    },
    "Humanities": {
        "arts": "艺术学",
        "chinese_history": "中国历史",
        "chinese_literature": "中国文学",
        "college_law": "大学法律",
        "global_facts": "全球事实",
        "international_law": "国际法学",
        "jurisprudence": "法理学",
        "logical": "逻辑学",
        "marxist_theory": "马克思主义理论",
        "philosophy": "哲学",
        "professional_law": "专业法学",
        "world_history": "世界历史",
        "world_religions": "世界宗教",
    },
    "Social Science": {
        "ancient_chinese": "古汉语",
        "business_ethics": "商业伦理",
        "chinese_civil_service_exam": "中国公务员考试",
        "chinese_food_culture": "中国饮食文化",
        "chinese_foreign_policy": "中国外交政策",
        "chinese_teacher_qualification": "中国教师资格",
        "college_education": "大学教育学",
        "economics": "经济学",
        "education": "教育学",
        "elementary_chinese": "小学语文",
        "ethnology": "民族学",
        "high_school_geography": "高中地理",
        "high_school_politics": "高中政治",
        "journalism": "新闻学",
        "management": "管理学",
        "marketing": "市场营销",
        "modern_chinese": "现代汉语",
        "professional_accounting": "专业会计",
        "professional_psychology": "专业心理学",
        "public_relations": "公共关系",
        "security_study": "安全研究",
        "sociology": "社会学",
    },
    "Other": {
        "agronomy": "农学",
        "chinese_driving_rule": "中国驾驶规则",
        "clinical_knowledge": "临床知识",
        "college_medicine": "大学医学",
        "computer_security": "计算机安全",
        "construction_project_management": "建设工程管理",
        "elementary_commonsense": "小学常识",
        "elementary_information_and_technology": "小学信息技术",
        "food_science": "食品科学",
        "human_sexuality": "人类性行为",
        "legal_and_moral_basis": "法律与道德基础",
        "nutrition": "营养学",
        "professional_medicine": "专业医学",
        "sports_science": "体育学",
        "traditional_chinese_medicine": "中医中药",
    },
}
_CHINA_SPECIFIC = frozenset(
    {
        "ancient_chinese",
        "chinese_civil_service_exam",
        "chinese_driving_rule",
        "chinese_food_culture",
        "chinese_foreign_policy",
        "chinese_history",
        "chinese_literature",
        "chinese_teacher_qualification",
        "construction_project_management",
        "elementary_chinese",
        "elementary_commonsense",
        "ethnology",
        "high_school_politics",
        "modern_chinese",
        "traditional_chinese_medicine",
    }
)

EXAM = Exam(
    title="CMMLU",
    subjects={
        name: Subject(chinese, group) for group, subjects in _GROUPS.items() for name, chinese in subjects.items()
    },
    split="test",
    splits={"test": 11582},
    file="{subject}.csv",
    question="Question",
    answer="Answer",
)

_QUESTION = "{question}" + OPTIONS
_HEADER = "以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n"
_SHOT = "题目：" + _QUESTION + "\n答案是：{answer}\n\n"
OFFICIAL = Wording(_HEADER, "题目：" + _QUESTION + "\n答案是：", _SHOT)
CHAIN_OF_THOUGHT = Wording(
    "以下是关于{subject}的单项选择题，请分析并选出正确答案。\n\n",
    "题目：" + _QUESTION + "\n逐步分析并给出答案选项。",
    _SHOT,
)
LM_EVAL = Wording(_HEADER, _QUESTION + "\n答案：", _QUESTION + "\n答案： {answer}\n\n", strips=True)

_SHOTS = range(6)
_choice = asking(EXAM, OFFICIAL, options=spelled(LETTERS))

_LM_EVAL = lm_eval_protocol("cmmlu", EXAM, LM_EVAL, part="china_specific", part_subjects=_CHINA_SPECIFIC)

BENCHMARK = Benchmark(
    name="cmmlu",
    protocol="official",
    version=1,
    description="CMMLU, 67 subjects, mean over subjects; --mode choice, scorings, generate, cot; 0 to 5 shots",
    prepare=_choice,
    score=scoring(
        EXAM,
        Marking(
            None,
            (MACRO, MICRO),
            group_score=MACRO,
            part="china_specific",
            part_subjects=_CHINA_SPECIFIC,
        ),
    ),
    modes={
        "choice": _choice,
        "scorings": asking_for_every_rule(EXAM, OFFICIAL),
        "generate": asking(EXAM, OFFICIAL),
        "cot": asking(EXAM, CHAIN_OF_THOUGHT, reading="cot"),
    },
    shots=_SHOTS,
    scorings=tuple(SCORINGS),
    protocols={"lm_eval": _LM_EVAL},
)
