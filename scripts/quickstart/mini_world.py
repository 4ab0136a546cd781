"""The words of the quickstart's mini-world, in English and Chinese; plain lists and nothing else."""

# Kind in both languages, then words of that kind in both languages.
WORD_GROUPS: dict[tuple[str, str], str] = {
    ("animal", "动物"): "dog 狗 cat 猫 horse 马 cow 牛 sheep 羊",
    ("fruit", "水果"): "apple 苹果 banana 香蕉 pear 梨 grape 葡萄 peach 桃子",
    ("colour", "颜色"): "red 红色 blue 蓝色 green 绿色 yellow 黄色 black 黑色",
    ("vehicle", "交通工具"): "car 汽车 bus 公交车 train 火车 bicycle 自行车 plane 飞机",
    ("garment", "衣物"): "hat 帽子 coat 外套 shirt 衬衫 skirt 裙子 shoe 鞋",
    ("body part", "身体部位"): "head 头 hand 手 foot 脚 eye 眼睛 ear 耳朵",
    ("food", "食物"): "bread 面包 rice 米饭 noodles 面条 egg 鸡蛋 meat 肉",
    ("job", "职业"): "teacher 老师 doctor 医生 nurse 护士 farmer 农民 driver 司机",
}

# Large unit, small unit, each in English (plural) and Chinese, and the zeros that make one of the other.
UNITS = (
    ("metres", "米", "centimetres", "厘米", "00"),
    ("kilometres", "千米", "metres", "米", "000"),
    ("kilograms", "千克", "grams", "克", "000"),
    ("yuan", "元", "jiao", "角", "0"),
)
