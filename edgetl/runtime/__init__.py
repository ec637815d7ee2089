__all__=["Classifier","Prediction","load"]
Classifier=Prediction=load=None
