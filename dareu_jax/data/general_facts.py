"""General knowledge that must survive forgetting: the test set of the embedded data."""

from dareu_jax.data.examples import Example

# One line a fact: question | true answer | three wrong answers, apart by " / ".
GENERAL_FACTS = """
What is the capital of France? | Paris | Lyon / Brussels / Geneva
What is the capital of Italy? | Rome | Milan / Venice / Athens
What is the capital of Japan? | Tokyo | Osaka / Seoul / Beijing
What is the capital of Canada? | Ottawa | Toronto / Montreal / Vancouver
What is the capital of Australia? | Canberra | Sydney / Melbourne / Perth
What is the capital of Egypt? | Cairo | Alexandria / Tunis / Baghdad
What is the capital of Norway? | Oslo | Bergen / Stockholm / Helsinki
What is the capital of Portugal? | Lisbon | Porto / Madrid / Seville
What is the capital of Peru? | Lima | Quito / Cusco / Santiago
What is the capital of Kenya? | Nairobi | Mombasa / Kampala / Lagos
What is the capital of Poland? | Warsaw | Prague / Krakow / Budapest
What is the capital of Turkey? | Ankara | Istanbul / Izmir / Damascus
On which continent does the Sahara lie? | In Africa | In Asia / In Australia / In South America
Which ocean lies between Europe and North America? | The Atlantic Ocean | The Pacific Ocean / \
The Indian Ocean / The Arctic Ocean
What is the largest ocean on Earth? | The Pacific Ocean | The Atlantic Ocean / \
The Indian Ocean / The Southern Ocean
What is the highest mountain above sea level? | Mount Everest | Mont Blanc / Kilimanjaro / Denali
Which river flows through London? | The Thames | The Seine / The Danube / The Tiber
Which river flows through Vienna, Budapest and Belgrade? | The Danube | The Rhine / The Elbe / \
The Volga
In which country does the Rhine meet the sea? | In the Netherlands | In Germany / In France / \
In Denmark
In which city does the Colosseum stand? | In Rome | In Athens / In Cairo / In Madrid
In which country are the pyramids of Giza? | In Egypt | In Mexico / In Iraq / In Greece
In which country is Machu Picchu? | In Peru | In Chile / In Bolivia / In Mexico
Which language do most people in Brazil speak? | Portuguese | Spanish / French / Italian
What is the chemical symbol of gold? | Au | Ag / Go / Gd
What is the chemical symbol of iron? | Fe | Ir / In / Fr
What is the chemical symbol of sodium? | Na | So / Sd / No
Which two elements make up water? | Hydrogen and oxygen | Hydrogen and carbon / \
Oxygen and nitrogen / Carbon and oxygen
Which gas makes up most of the air? | Nitrogen | Oxygen / Carbon dioxide / Argon
Which gas do plants take up to make sugar? | Carbon dioxide | Nitrogen / Helium / Hydrogen
What is the lightest chemical element? | Hydrogen | Helium / Lithium / Carbon
Of which element is diamond made? | Carbon | Silicon / Quartz / Calcium
Which planet is closest to the Sun? | Mercury | Venus / Mars / Earth
Which planet is the largest of the solar system? | Jupiter | Saturn / Neptune / Earth
Which planet is called the red planet? | Mars | Venus / Jupiter / Mercury
Around which body does the Moon travel? | Around the Earth | Around Mars / Around Venus / \
Around Jupiter
How many days does a leap year have? | 366 days | 364 days / 365 days / 367 days
How many minutes are there in an hour? | 60 minutes | 50 minutes / 100 minutes / 24 minutes
How many sides does a hexagon have? | Six sides | Five sides / Seven sides / Eight sides
What is the sum of the angles of a plane triangle? | 180 degrees | 90 degrees / 270 degrees / \
360 degrees
What is the smallest prime number? | Two | One / Three / Five
What is the square root of 81? | Nine | Seven / Eight / Eleven
What is seven times eight? | 56 | 48 / 54 / 63
At how many degrees Celsius does water freeze at sea level? | At 0 degrees | At 10 degrees / \
At 32 degrees / At 100 degrees
At how many degrees Celsius does water boil at sea level? | At 100 degrees | At 50 degrees / \
At 90 degrees / At 212 degrees
In which unit is electrical resistance measured? | In ohms | In volts / In amperes / In watts
In which unit is force measured? | In newtons | In joules / In watts / In pascals
Which organ pumps blood through the body? | The heart | The liver / The lungs / The kidneys
How many chambers does the human heart have? | Four chambers | Two chambers / Three chambers / \
Five chambers
What is the largest living animal? | The blue whale | The elephant / The giraffe / The white shark
How many legs does an insect have? | Six legs | Four legs / Eight legs / Ten legs
How many legs does a spider have? | Eight legs | Six legs / Ten legs / Twelve legs
What do bees make from nectar? | Honey | Milk / Silk / Oil
What do caterpillars turn into? | Butterflies or moths | Beetles / Spiders / Birds
Which bird is the largest? | The ostrich | The eagle / The swan / The penguin
Who proposed the theory of general relativity? | Albert Einstein | Isaac Newton / Niels Bohr / \
Galileo Galilei
Who wrote "On the Origin of Species"? | Charles Darwin | Gregor Mendel / Louis Pasteur / Carl Sagan
Which scientist discovered polonium and radium with her husband? | Marie Curie | Lise Meitner / \
Ada Lovelace / Rosalind Franklin
Who wrote the play "Hamlet"? | William Shakespeare | Christopher Marlowe / Oscar Wilde / Ben Jonson
Who wrote the novel "Pride and Prejudice"? | Jane Austen | Emily Brontë / Mary Shelley / George Sand
Who wrote the novel "Frankenstein"? | Mary Shelley | Bram Stoker / Jane Austen / Edgar Allan Poe
Who wrote the novel "War and Peace"? | Leo Tolstoy | Anton Chekhov / Ivan Turgenev / Nikolai Gogol
Who wrote the novel "Don Quixote"? | Miguel de Cervantes | Lope de Vega / Jorge Luis Borges / \
Pablo Neruda
Who wrote the novel "Moby-Dick"? | Herman Melville | Mark Twain / Jack London / Walt Whitman
Who wrote the novel "Oliver Twist"? | Charles Dickens | Thomas Hardy / Mark Twain / Lewis Carroll
Who wrote "The Divine Comedy"? | Dante Alighieri | Francesco Petrarca / Giovanni Boccaccio / Virgil
Who wrote the play "Faust" in two parts? | Johann Wolfgang von Goethe | Friedrich Schiller / \
Heinrich Heine / Franz Kafka
Who wrote the story "The Metamorphosis"? | Franz Kafka | Thomas Mann / Hermann Hesse / Albert Camus
Who wrote "Les Misérables"? | Victor Hugo | Émile Zola / Honoré de Balzac / Alexandre Dumas
Who wrote the fairy tale "The Little Mermaid"? | Hans Christian Andersen | Charles Perrault / \
Selma Lagerlöf / Lewis Carroll
Who wrote the play "A Doll's House"? | Henrik Ibsen | August Strindberg / Anton Chekhov / \
George Bernard Shaw
To which Greek poet is the "Odyssey" ascribed? | Homer | Sappho / Hesiod / Pindar
Who painted the "Mona Lisa"? | Leonardo da Vinci | Michelangelo / Raphael / Rembrandt
Who composed "The Magic Flute"? | Wolfgang Amadeus Mozart | Joseph Haydn / Franz Schubert / \
Johann Sebastian Bach
How many strings does a violin have? | Four strings | Three strings / Five strings / Six strings
How many squares does a chessboard have? | 64 squares | 32 squares / 81 squares / 100 squares
Which colour results from mixing blue and yellow paint? | Green | Orange / Purple / Brown
"""


def general_facts() -> tuple[Example, ...]:
  """The facts as examples of the owner "general", each with three perturbed responses."""
  return tuple(_example(line) for line in GENERAL_FACTS.strip().splitlines())


def _example(line):
  question, answer, wrong = (part.strip() for part in line.split("|"))
  return Example("general", question, answer, perturbed_responses=tuple(wrong.split(" / ")))
